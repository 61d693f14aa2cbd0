"""RoIAlign: the part of a pyramid of feature maps that lies in a box, at a fixed size."""

import itertools
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from sop.detection.boxes import area
from sop.ops.annotations import Array
from sop.ops.derivatives import linear
from sop.ops.platform import in_turns

# Positions that a box of the level's own size has along a side: 224 pixels at stride 16.
_CANONICAL = 14


def levels(
    boxes: Float[Array, "*batch r 4"], finest_stride: float, count: int
) -> Int[Array, "*batch r"]:
    """The level of a pyramid that each box is taken from, 0 the finest.

    ⌊log₂(√area / (14 · finest_stride))⌋, at least 0 and less than `count`; Lin et al., CVPR 2017,
    eq. 1.
    """
    side = jnp.sqrt(jnp.maximum(area(boxes), 1e-12))
    level = jnp.floor(jnp.log2(side / (_CANONICAL * finest_stride)) + 1e-6)
    return jnp.clip(level, 0, count - 1).astype(jnp.int32)


@jax.named_scope("roi_align")
def roi_align(
    maps: Sequence[Float[Array, "_ _ c"]],
    boxes: Float[Array, "r 4"],
    level: Int[Array, " r"],
    strides: Sequence[float],
    size: int,
    *,
    samples: int = 2,
    aligned: bool = False,
    smallest: float = 1.0,
) -> Float[Array, "r {size} {size} c"]:
    """The maps of one image at size² bins of each box.

    A bin's value is the mean at samples² points, equally spaced in it, of the map interpolated
    bilinearly between the middles of its positions; points more than one position outside count as
    zero. He et al., "Mask R-CNN", ICCV 2017, section 3. Not differentiated by the boxes.

    Args:
      maps: of a pyramid's levels.
      boxes: in pixels of the image.
      level: of each box, see `levels`.
      strides: of each level, pixels from one position to the next.
      aligned: the first position's middle lies at half a stride, as it should. False: at 0, as in
        the first implementations and torchvision's detectors.
      smallest: the least side of a box, in positions.
    """
    boxes = lax.stop_gradient(boxes)
    shapes = np.array([x.shape[:2] for x in maps])
    starts = np.cumsum([0, *shapes.prod(1)[:-1]])
    flat = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in maps])
    stride = jnp.asarray(np.array(strides), boxes.dtype)[level]
    height, width = jnp.asarray(shapes)[level].T

    def along(low, high, limit):
        """Per box and point: two positions and their weights, [r, size · samples] each."""
        low, high = low / stride - 0.5 * aligned, high / stride - 0.5 * aligned
        step = jnp.maximum(high - low, smallest) / (size * samples)
        at = low[:, None] + (jnp.arange(size * samples) + 0.5) * step[:, None]
        last = limit[:, None] - 1
        counts = (at >= -1) & (at <= last + 1)
        at = jnp.clip(at, 0, last)
        first = jnp.floor(at).astype(jnp.int32)
        share = at - first
        next_one = jnp.minimum(first + 1, last)
        return ((first, counts * (1 - share)), (next_one, counts * share))

    rows = along(boxes[:, 1], boxes[:, 3], height)
    columns = along(boxes[:, 0], boxes[:, 2], width)
    start, width = jnp.asarray(starts)[level][:, None, None], width[:, None, None]
    index, weight = [], []
    for (y, wy), (x, wx) in itertools.product(rows, columns):
        for i, j in itertools.product(range(samples), repeat=2):
            index.append(start + y[:, i::samples, None] * width + x[:, None, j::samples])
            weight.append(wy[:, i::samples, None] * wx[:, None, j::samples] / samples**2)
    scattered = partial(_scattered, len(flat))

    def interpolated(*points):
        return linear(_gathered, scattered, [flat], points)[0]

    return in_turns(interpolated, jnp.stack(index, 1), jnp.stack(weight, 1))


def _gathered(points, maps):
    """Σ over points of weight · value: index and weight [r, points, …], map [n, c] → [r, …, c]."""
    (index, weight), [flat] = points, maps
    terms = (flat[index[:, i]] * weight[:, i, ..., None] for i in range(index.shape[1]))
    return [sum(terms).astype(flat.dtype)]


def _scattered(size, points, cotangents):
    """The transpose, point by point into one map: all at once would need each point's values."""
    (index, weight), [g] = points, cotangents

    def add(total, point):
        i, w = point
        return total.at[i].add(g * w[..., None]), None

    zeros = jnp.zeros((size, g.shape[-1]), jnp.result_type(g, weight))
    points = (index.swapaxes(0, 1), weight.swapaxes(0, 1))
    return [lax.scan(add, zeros, points)[0].astype(g.dtype)]
