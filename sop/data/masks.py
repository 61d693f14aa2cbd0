"""Masks as COCO writes them: polygons and run lengths, by the library that also compares them."""

from typing import Any

import cv2
import numpy as np

from sop.data.objects import Rle
from sop.errors import UsageError


def mask_library() -> Any:
    """`faster_coco_eval`.

    Raises:
      UsageError: it is not installed.
    """
    try:
        import faster_coco_eval
    except ImportError as error:
        raise UsageError(
            "Detection needs the package faster-coco-eval: run: pip install -c constraints.txt -e "
            "'.[detection]'."
        ) from error
    return faster_coco_eval


def encode_mask(mask: np.ndarray) -> Rle:
    """bool or uint8 [H, W] → run lengths."""
    library = mask_library()
    return library.mask.encode(np.asfortranarray(mask, np.uint8))


def decode_mask(rle: Rle) -> np.ndarray:
    """Run lengths → uint8 [H, W] of 0 and 1."""
    return mask_library().mask.decode(rle)


def read_segmentation(segmentation: Any, height: int, width: int) -> Rle:
    """COCO's 'segmentation' of an annotation: polygons, or run lengths as numbers or as text.

    Raises:
      ValueError: it is none of these.
    """
    library = mask_library().mask
    match segmentation:
        case {"counts": list(), "size": [int(h), int(w)]}:
            return library.frPyObjects(segmentation, h, w)
        case {"counts": str() | bytes() as counts, "size": [int(h), int(w)]}:
            return {
                "size": [h, w],
                "counts": counts.encode() if isinstance(counts, str) else counts,
            }
        case [[*_], *_] if all(len(each) >= 6 and len(each) % 2 == 0 for each in segmentation):
            return library.merge(library.frPyObjects(segmentation, height, width))
    raise ValueError("it is neither polygons nor run lengths")


def in_boxes(masks: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """Each mask's part in its box, interpolated bilinearly in the middles of size² cells.

    Args:
      masks: uint8 [n, H, W] of 0 and 1.
      boxes: float [n, 4], edges in pixels.
    Returns:
      uint8 [n, size, size], 255 where the mask is.
    """
    parts = np.zeros((len(masks), size, size), np.uint8)
    middles = (np.arange(size, dtype=np.float32) + 0.5) / size
    for mask, (x1, y1, x2, y2), part in zip(masks, boxes, parts, strict=True):
        across, down = x1 + middles * (x2 - x1) - 0.5, y1 + middles * (y2 - y1) - 0.5
        grid = np.meshgrid(across.astype(np.float32), down.astype(np.float32))
        cv2.remap(mask * np.uint8(255), *grid, cv2.INTER_LINEAR, dst=part)
    return parts


def paste(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> list[Rle]:
    """Masks drawn into their boxes, at least ½ after bilinear interpolation.

    Args:
      masks: float [k, M, M], a share of the box each.
      boxes: float [k, 4] in pixels of an image.
      size: its height and width.
    """
    height, width = size
    pasted = []
    for mask, (x1, y1, x2, y2) in zip(masks.astype(np.float32), boxes, strict=True):
        canvas = np.zeros((height, width), np.uint8)
        left, top = max(int(np.floor(x1)), 0), max(int(np.floor(y1)), 0)
        right, bottom = min(int(np.ceil(x2)), width), min(int(np.ceil(y2)), height)
        if left < right and top < bottom:
            at_x = _places(left, right, x1, x2, mask.shape[1])
            at_y = _places(top, bottom, y1, y2, mask.shape[0])
            grid = np.meshgrid(at_x, at_y)
            inside = cv2.remap(mask, *grid, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
            canvas[top:bottom, left:right] = inside >= 0.5
        pasted.append(encode_mask(canvas))
    return pasted


def _places(first: int, end: int, low: float, high: float, size: int) -> np.ndarray:
    """Where the centres of the pixels [first, end) lie on a grid of `size` cells in [low, high]."""
    share = (np.arange(first, end) + 0.5 - low) / max(high - low, 1e-6)
    return (share * size - 0.5).astype(np.float32)
