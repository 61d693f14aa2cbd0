"""Scenes on their way to a detector, and what it finds on the way back."""

import dataclasses
import sys
from typing import Any

import numpy as np

from sop.data import images as codec
from sop.data.examples import Images, filled
from sop.data.images import BadImageError
from sop.data.masks import decode_mask, in_boxes, paste
from sop.data.objects import Annotated, Objects
from sop.data.scenes import Scene, ScenePipeline, kept
from sop.detection.metric import Found
from sop.progress import shown


@dataclasses.dataclass
class Scenes(Images):
    """The transformed images of one split with their objects.

    Rows for training are {'image': uint8 [H, W, 3], 'boxes': float32 [N, 4] in pixels of it,
    'labels': int32 [N], 'valid', 'crowd': bool [N], 'size': float32 [2]}, N = `capacity`; 'size' is
    height and width of what is not padding; difficult objects are left out. With `mask_size` M
    there are 'masks' too, uint8 [N, M, M]: see `sop.data.masks.in_boxes`. For evaluation they are
    {'image', 'index': int32, the example, 'size'}.
    """

    source: Annotated
    pipeline: ScenePipeline
    capacity: int = 0
    mask_size: int | None = None
    _crowded: set[int] = dataclasses.field(default_factory=set)

    def __post_init__(self):
        sizes = self.pipeline.sizes()
        self.shape = (*sizes[0], 3)
        self.row_shape = self.shape
        facts = {"size": ((2,), np.float32), **self._facts()}
        self.buckets = [{"image": ((*size, 3), np.uint8), **facts} for size in sizes]
        self.groups = self._sorted(sizes) if len(sizes) > 1 else None

    def _facts(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """What rows have besides the image and its size."""
        if not self.replace_bad:  # evaluation
            return {"index": ((), np.int32)}
        count = self.capacity
        rows: dict[str, Any] = {"boxes": ((count, 4), np.float32), "labels": ((count,), np.int32)}
        rows |= {"valid": ((count,), bool), "crowd": ((count,), bool)}
        if self.mask_size is not None:
            rows |= {"masks": ((count, self.mask_size, self.mask_size), np.uint8)}
        return rows

    def _sorted(self, sizes: list[tuple[int, int]]) -> np.ndarray:
        """Which of the sizes each example will have."""
        count = len(self.source)
        found = shown(
            ((1, self.source.size(example)) for example in range(count)),
            count,
            "reading the sizes of images",
        )
        return np.array([sizes.index(self.pipeline.size_of(size)) for size in found], np.int8)

    def _made(
        self, example: int, data: bytes, objects: Objects, draws: np.ndarray
    ) -> dict[str, Any]:
        self.check(data)
        image = codec.decode(data)
        said = self.source.size(example)
        if image.shape[:2] != said:
            raise BadImageError(
                f"since it has {image.shape[0]} rows and {image.shape[1]} columns, but its "
                f"annotations are for {said[0]} and {said[1]}: correct them, or, if its EXIF data "
                "turn it, set config.input.exif = 'ignore'"
            )
        if self.replace_bad:
            objects = kept(objects, ~objects.difficult)
        masks = self._masks(objects, image.shape[:2]) if self.replace_bad else None
        scene = self.pipeline(Scene(image, objects, masks, image.shape[:2]), draws)
        if not self.replace_bad:
            return {"image": scene.image, "index": example, "size": scene.size}
        return {"image": scene.image, "size": scene.size, **self._padded(example, scene)}

    def _masks(self, objects: Objects, size: tuple[int, int]) -> np.ndarray | None:
        """Those that are learned, uint8 [n, H, W]."""
        if self.mask_size is None:
            return None
        masks = [decode_mask(each) for each in objects.masks or ()]
        return np.stack(masks) if masks else np.zeros((0, *size), np.uint8)

    def _padded(self, example: int, scene: Scene) -> dict[str, np.ndarray]:
        """The objects, filled up to `capacity`."""
        if len(scene.objects) > self.capacity and example not in self._crowded:
            self._crowded.add(example)
            print(
                f"The image {self.source.describe(example)} has {len(scene.objects)} objects, more "
                f"than config.input.max_objects: the first {self.capacity} are taken "
                f"({len(self._crowded)} such images so far).",
                file=sys.stderr,
            )
        scene = scene.kept(np.arange(len(scene.objects)) < self.capacity)
        objects, count = scene.objects, len(scene.objects)
        arrays = {"boxes": objects.boxes, "labels": objects.labels, "crowd": objects.crowd}
        arrays["valid"] = np.ones(count, bool)
        if scene.masks is not None:
            arrays["masks"] = in_boxes(scene.masks, objects.boxes, self.mask_size)
        return filled(arrays, self.capacity)


def to_original(said: dict[str, np.ndarray], size: tuple[int, int]) -> Found:
    """A detector's row for a transformed image → what it found in the original one.

    Args:
      said: 'boxes' [K, 4], 'scores', 'labels', 'valid' [K], perhaps 'masks' [K, M, M], and 'size'
        [2], height and width of what is not padding.
      size: height and width of the original.
    """
    rows = np.flatnonzero(said["valid"])
    (height, width), (inner_height, inner_width) = size, said["size"].tolist()
    scale = np.array([width / inner_width, height / inner_height] * 2)
    boxes = (said["boxes"][rows] * scale).clip(0, [width, height, width, height])
    masks = paste(said["masks"][rows], boxes, size) if "masks" in said else None
    return Found(boxes, said["scores"][rows], said["labels"][rows], masks)
