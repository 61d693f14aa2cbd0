"""Scenes on their way to a detector, and what it finds on the way back."""

import dataclasses
import sys
from typing import Any

import numpy as np

from sop.data import images as codec
from sop.data.examples import Images, filled
from sop.data.masks import paste
from sop.data.objects import Annotated, Objects
from sop.data.scenes import Scene, ScenePipeline, kept
from sop.detection.metric import Found
from sop.errors import UsageError


@dataclasses.dataclass
class Scenes(Images):
    """The transformed images of one split with their objects.

    Rows for training are {'image': uint8 [H, W, 3], 'boxes': float32 [N, 4] in pixels of it,
    'labels': int32 [N], 'valid', 'crowd': bool [N]}, N = `capacity`; difficult objects are left
    out. For evaluation they are {'image', 'index': int32, the example, 'size': float32 [2], height
    and width of what is not padding}.
    """

    source: Annotated
    pipeline: ScenePipeline
    capacity: int = 0
    _crowded: set[int] = dataclasses.field(default_factory=set)

    def __post_init__(self):
        sizes = self.pipeline.sizes()
        if len(sizes) > 1:
            raise UsageError(
                "resize_pad gives images of two sizes, which cannot be in one batch yet: let "
                "config.input.train_transforms and config.input.eval_transforms end in resize."
            )
        self.shape = (*sizes[0], 3)
        self.row_shape = self.shape
        self.rows = {"image": (self.shape, np.uint8)}
        if not self.replace_bad:  # evaluation
            self.rows |= {"index": ((), np.int32), "size": ((2,), np.float32)}
            return
        count = self.capacity
        self.rows |= {"boxes": ((count, 4), np.float32), "labels": ((count,), np.int32)}
        self.rows |= {"valid": ((count,), bool), "crowd": ((count,), bool)}

    def _made(
        self, example: int, data: bytes, objects: Objects, draws: np.ndarray
    ) -> dict[str, Any]:
        self.check(data)
        image = codec.decode(data)
        if self.replace_bad:
            objects = kept(objects, ~objects.difficult)
        scene = self.pipeline(Scene(image, objects, None, image.shape[:2]), draws)
        if not self.replace_bad:
            return {"image": scene.image, "index": example, "size": scene.size}
        return {"image": scene.image, **self._padded(example, scene)}

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
