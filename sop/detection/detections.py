"""What there is in an image, from what a detector says of its anchors or proposals."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

from sop.detection import boxes as box
from sop.detection.nms import suppress
from sop.ops.annotations import Array

# Of scores [a, c]: those that suppression looks at, by falling score, and whose they are, [..., k].
Highest = Callable[[Array, int], tuple[Array, Array, Array]]


def of_each_class(
    scores: Float[Array, "a c"], count: int
) -> tuple[Float[Array, "c k"], Int[Array, "c k"], Int[Array, "c k"]]:
    """The `count` highest scores of each class, their rows and their classes."""
    top, rows = lax.top_k(scores.T, min(count, len(scores)))
    return top, rows, jnp.broadcast_to(jnp.arange(len(top))[:, None], rows.shape)


def of_all_classes(
    scores: Float[Array, "a c"], count: int
) -> tuple[Float[Array, " k"], Int[Array, " k"], Int[Array, " k"]]:
    """The `count` highest scores of all classes together, their rows and their classes."""
    top, place = lax.top_k(scores.ravel(), min(count, scores.size))
    return top, *jnp.divmod(place, scores.shape[1])


def best(
    boxes: Float[Array, "a _ 4"],
    scores: Float[Array, "a c"],
    *,
    highest: Highest,
    threshold: float,
    overlap: float,
    candidates: int,
    detections: int,
    inclusive: bool = False,
) -> dict[str, jax.Array]:
    """The detections in one image: suppression within each class, then the best over all classes.

    Args:
      boxes: of each anchor or proposal, one for all classes or one for each.
      scores: of each class, without the background.
      highest: `of_each_class` or `of_all_classes`: whose scores compete to be looked at.
      threshold: of scores; only higher ones count.
      overlap: see `sop.detection.nms.suppress`.
      candidates: the highest scores that suppression looks at.
      detections: K, the largest number in an image.
    Returns:
      'boxes' [K, 4], 'scores' [K], 'labels' int32 [K], 'valid' bool [K], by falling score; what is
      not valid is zero.
    """
    counts = jnp.isfinite(scores) & (scores > threshold)
    top, rows, labels = highest(jnp.where(counts, scores, -1), candidates)
    chosen = jnp.broadcast_to(boxes, (*scores.shape, 4))[rows, labels]
    kept = suppress(chosen, top > threshold, overlap, inclusive, labels)
    size = min(detections, top.size)
    top, place = lax.top_k(jnp.where(kept, top, -1).ravel(), size)
    valid = top > threshold
    found = {"boxes": chosen.reshape(-1, 4)[place], "scores": top, "labels": labels.ravel()[place]}

    def filled_up(x):
        rows = jnp.where(valid.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.zeros((), x.dtype))
        return jnp.pad(rows, ((0, detections - size), *((0, 0),) * (x.ndim - 1)))

    return jax.tree.map(filled_up, {**found, "valid": valid})


def detect(
    logits: Float[Array, "a c+1"],
    deltas: Float[Array, "a _ 4"],
    size: Float[Array, "2"],
    starts: Float[Array, "a 4"],
    valid: jax.Array | bool = True,
    *,
    smallest: float = 0.0,
    inclusive: bool = False,
    **options: Any,
) -> dict[str, jax.Array]:
    """What one image's anchors or proposals hold, see `best`; corners are as `inclusive` has them.

    Args:
      logits: background first.
      deltas: a box for all classes or one for each, in the terms of `sop.detection.boxes.encode`.
      size: height and width of the image.
      starts: the anchors or proposals.
      valid: bool [a], False where a proposal only fills up their number.
      smallest: the least side of a box, in pixels.
    """
    boxes = box.decode(deltas, starts[:, None], box.DEVIATIONS, inclusive)
    boxes = box.clip(boxes, size - inclusive)
    is_one = (box.sizes(boxes, inclusive) >= smallest).all(-1) & jnp.asarray(valid)[..., None]
    scores = jnp.where(is_one, jax.nn.softmax(logits)[:, 1:], -1)
    return best(boxes, scores, inclusive=inclusive, **options)
