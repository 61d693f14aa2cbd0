"""Boxes […, 4] as corners (x₁, y₁, x₂, y₂), float32, in pixels of the image.

Corners lie on the edges of pixels: a box over the whole of an image is (0, 0, W, H) and its width
is x₂ − x₁. Old mmdetection named the last pixel inside instead, so that a width is x₂ − x₁ + 1.
Where that counts, `inclusive` says so.
"""

import math

import jax.numpy as jnp
from jaxtyping import Bool, Float

from sop.ops.annotations import Array

Boxes = Float[Array, "*batch 4"]

# Of what is said of an object's box, see `encode`.
DEVIATIONS = (0.1, 0.1, 0.2, 0.2)

# The largest log of a ratio of sizes that is decoded: 1000/16, as Faster R-CNN's first code had it.
_LARGEST_LOG = math.log(1000 / 16)


def last_pixel(inclusive: bool) -> Float[Array, "4"]:
    """What has to be added to a box for its corners to lie on edges."""
    return jnp.array([0, 0, 1, 1], jnp.float32) * inclusive


def sizes(boxes: Boxes, inclusive: bool = False) -> Float[Array, "*batch 2"]:
    """Widths and heights."""
    return boxes[..., 2:] - boxes[..., :2] + inclusive


def area(boxes: Boxes, inclusive: bool = False) -> Float[Array, "*batch"]:
    """Width × height; 0 where one of them is negative."""
    return jnp.maximum(sizes(boxes, inclusive), 0).prod(-1)


def iou(
    boxes: Float[Array, "*batch n 4"], others: Float[Array, "*batch m 4"], inclusive: bool = False
) -> Float[Array, "*batch n m"]:
    """Intersection over union of each pair; 0 where the union has no area."""
    low = jnp.maximum(boxes[..., :, None, :2], others[..., None, :, :2])
    high = jnp.minimum(boxes[..., :, None, 2:], others[..., None, :, 2:])
    common = area(jnp.concatenate([low, high], -1), inclusive)
    union = area(boxes, inclusive)[..., :, None] + area(others, inclusive)[..., None, :] - common
    return jnp.where(union > 0, common / jnp.where(union > 0, union, 1), 0)


def clip(boxes: Boxes, size: Float[Array, "*batch 2"]) -> Boxes:
    """Moves corners into an image.

    Args:
      size: height and width, shaped to broadcast with [..., 2].
    """
    limits = jnp.concatenate([size[..., ::-1], size[..., ::-1]], -1)
    return jnp.clip(boxes, 0, limits)


def has_area(boxes: Boxes) -> Bool[Array, "*batch"]:
    """Finite and with both sides above zero: what a detector can be trained to find."""
    return jnp.isfinite(boxes).all(-1) & (sizes(boxes) > 0).all(-1)


def encode(
    boxes: Boxes,
    anchors: Boxes,
    deviations: tuple[float, float, float, float],
    inclusive: bool = False,
) -> Float[Array, "*batch 4"]:
    """What a detector has to say at an anchor for its answer to be the box.

    ((x − xₐ)/wₐ, (y − yₐ)/hₐ, log w/wₐ, log h/hₐ) of centres and sizes, each divided by its
    deviation. Girshick et al., CVPR 2014, appendix C.

    Both must have an area.
    """
    size, size_a = sizes(boxes, inclusive), sizes(anchors, inclusive)
    shift = (_centres(boxes) - _centres(anchors)) / size_a
    return jnp.concatenate([shift, jnp.log(size / size_a)], -1) / jnp.array(deviations, boxes.dtype)


def decode(
    deltas: Float[Array, "*batch 4"],
    anchors: Boxes,
    deviations: tuple[float, float, float, float],
    inclusive: bool = False,
) -> Boxes:
    """The box that is meant at an anchor, the inverse of `encode`.

    The logs of the sizes are bounded above by log(1000/16), those of `inclusive` boxes below by
    its negative.
    """
    deltas = deltas * jnp.array(deviations, deltas.dtype)
    size_a = sizes(anchors, inclusive)
    centres = _centres(anchors) + deltas[..., :2] * size_a
    smallest_log = -_LARGEST_LOG if inclusive else -jnp.inf
    size = jnp.exp(jnp.clip(deltas[..., 2:], smallest_log, _LARGEST_LOG)) * size_a
    half = (size - inclusive) / 2
    return jnp.concatenate([centres - half, centres + half], -1)


def _centres(boxes):
    return (boxes[..., :2] + boxes[..., 2:]) / 2
