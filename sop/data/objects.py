"""The objects that lie in an image: boxes, classes and masks."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

Rle = dict[str, Any]  # COCO's run-length encoding of a mask, {'size': [H, W], 'counts': bytes}


@dataclasses.dataclass(frozen=True)
class Objects:
    """What an image holds.

    Attributes:
      boxes: float32 [n, 4], edges (x1, y1, x2, y2) in pixels: the first pixel is [0, 1].
      labels: int32 [n].
      crowd: bool [n], of boxes around many objects; they are neither to be found nor wrong to find.
      difficult: bool [n], of objects that VOC's metric leaves out, as training does.
      areas: float64 [n], in square pixels, by which COCO's metric tells small from large.
      masks: of each; None: there are none.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    areas: np.ndarray
    masks: tuple[Rle, ...] | None = None

    def __len__(self) -> int:
        return len(self.boxes)


def make_objects(
    boxes: Sequence[Sequence[float]] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    *,
    crowd: Sequence[bool] | np.ndarray | None = None,
    difficult: Sequence[bool] | np.ndarray | None = None,
    areas: Sequence[float] | np.ndarray | None = None,
    masks: Sequence[Rle] | None = None,
) -> Objects:
    """Objects from lists; what is not given is False, and areas are those of the boxes."""
    edges = np.asarray(boxes, np.float32).reshape(-1, 4)
    none = np.zeros(len(edges), bool)
    sides = edges[:, 2:].astype(np.float64) - edges[:, :2]
    return Objects(
        edges,
        np.asarray(labels, np.int32).reshape(-1),
        none if crowd is None else np.asarray(crowd, bool),
        none if difficult is None else np.asarray(difficult, bool),
        sides.prod(axis=1) if areas is None else np.asarray(areas, np.float64),
        None if masks is None else tuple(masks),
    )


def overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of one box [4] with others [n, 4], in the type that they have."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    inside = (high - low).clip(0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return inside / np.maximum(areas - inside, 1e-12)


class Annotated(Protocol):
    """The examples of one split for detection, in a fixed order; as `sop.data.source.Source`."""

    class_names: list[str]
    has_masks: bool
    identity: dict[str, Any]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes, Objects]:
        """(encoded image, what it holds)"""

    def truth(self, index: int) -> tuple[tuple[int, int], Objects]:
        """(height and width of the image, what it holds); no pixel is decoded."""

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the image."""

    def describe(self, index: int) -> str:
        """Names example `index` to a reader."""
