"""Anchors: the boxes that detectors start from, at every position of their feature maps.

Constants of a program, hence NumPy arrays, float32 [positions · anchors, 4], row after row.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np


def grid(
    base: np.ndarray, shape: tuple[int, int], strides: tuple[float, float], offset: float = 0.0
) -> np.ndarray:
    """The boxes `base` [A, 4], around (0, 0), at every position of a map: [h · w · A, 4].

    Args:
      shape: h and w of the map.
      strides: pixels from one row to the next, and from one column.
      offset: where the first position lies, in strides; ½ is the middle of its pixels.
    """
    rows, columns = ((np.arange(n) + offset) * s for n, s in zip(shape, strides, strict=True))
    y, x = np.meshgrid(rows, columns, indexing="ij")
    places = np.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    return (places + base).reshape(-1, 4).astype(np.float32)


def around_zero(widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Boxes [A, 4] of these sizes with their centres at (0, 0)."""
    half = np.stack([widths, heights], -1) / 2
    return np.concatenate([-half, half], -1)


def ssd_sizes(
    image_size: int, levels: int, smallest: float, low: float, high: float
) -> list[tuple[float, float]]:
    """The two sizes in pixels of each level's anchors (Liu et al., ECCV 2016, eq. 4).

    The first level has `smallest` and `low` of the image; the others go from `low` to `high` in
    equal steps of whole percents, as in SSD's code. The second size of a level is the first of the
    next.

    >>> ssd_sizes(300, 6, 0.1, 0.2, 0.9)[:2], ssd_sizes(300, 6, 0.1, 0.2, 0.9)[-1]
    ([(30, 60), (60, 111)], (264, 315))
    """
    first, last = round(100 * low), round(100 * high)
    step = (last - first) // (levels - 2) if levels > 2 else last - first
    percents = [round(100 * smallest), *(first + step * i for i in range(levels))]
    pixels = [image_size * percent // 100 for percent in percents]
    return list(itertools.pairwise(pixels))


def ssd_base(size: float, next_size: float, ratios: Sequence[float]) -> np.ndarray:
    """SSD's boxes at a position: [2 + 2·len(ratios), 4].

    Squares of `size` and of √(size · next_size), then of the first one's area those that are ratio
    times as wide as high, and as high as wide, for each ratio.
    """
    widths, heights = [size, math.sqrt(size * next_size)], [size, math.sqrt(size * next_size)]
    for ratio in ratios:
        root = math.sqrt(ratio)
        widths += [size * root, size / root]
        heights += [size / root, size * root]
    return around_zero(np.array(widths), np.array(heights))


def pyramid_base(size: float, ratios: Sequence[float]) -> np.ndarray:
    """Boxes of size² square pixels, each ratio times as high as wide: [len(ratios), 4]."""
    roots = np.sqrt(np.array(ratios))
    return around_zero(size / roots, size * roots)


def on_pixels(base: np.ndarray, strides: tuple[float, float]) -> np.ndarray:
    """Boxes in whole pixels around a position's middle, the last pixel inside; old mmdetection's.

    They go from the first pixel's middle to the last one's, around the middle of the stride's
    pixels, and are then rounded.
    """
    half = np.tile((np.array(strides[::-1]) - 1) / 2, 2)
    return np.round(base + np.array([0.5, 0.5, -0.5, -0.5]) + half)
