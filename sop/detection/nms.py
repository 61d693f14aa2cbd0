"""Non-maximum suppression with static shapes."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from sop.detection.boxes import iou
from sop.ops.annotations import Array


@jax.named_scope("suppression")
def suppress(
    boxes: Float[Array, "*batch k 4"],
    valid: Bool[Array, "*batch k"],
    threshold: float,
    inclusive: bool = False,
    groups: Int[Array, "*batch k"] | None = None,
) -> Bool[Array, "*batch k"]:
    """Which boxes greedy suppression keeps.

    Box i is kept if no kept box before it overlaps it by more than `threshold`:

        kept(i) = valid(i) ∧ ¬∃ j < i: kept(j) ∧ IoU(i, j) > threshold.

    Beginning with all valid boxes, this equation is applied until nothing changes. After t times
    the first t boxes have their final values, so the end is the greedy answer itself; a handful of
    times is enough unless boxes form long chains. Memory is k² bits as bytes for each image.

    Args:
      boxes: by falling score.
      valid: False for what only fills up the number of boxes.
      groups: boxes of different ones hide nothing of one another; None: all are of one.
    """
    before = jnp.tri(boxes.shape[-2], k=-1, dtype=bool)
    hides = (iou(boxes, boxes, inclusive) > threshold) & before
    if groups is not None:
        hides &= groups[..., :, None] == groups[..., None, :]

    def again(state):
        kept, _ = state
        new = valid & ~(hides & kept[..., None, :]).any(-1)
        return new, (new != kept).any()

    return lax.while_loop(lambda state: state[1], again, (valid, jnp.array(True)))[0]


def best_of_classes(
    boxes: Float[Array, "a _ 4"],
    scores: Float[Array, "a c"],
    *,
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
      threshold: of scores; only higher ones count.
      overlap: see `suppress`.
      candidates: highest scores of each class that suppression looks at.
      detections: K, the largest number in an image.
    Returns:
      'boxes' [K, 4], 'scores' [K], 'labels' int32 [K], 'valid' bool [K], by falling score; what is
      not valid is zero. And 'index' int32 [K], which anchor or proposal each comes from.
    """
    number, classes = scores.shape
    found = jnp.where(jnp.isfinite(scores) & (scores > threshold), scores, -1).T
    top, index = lax.top_k(found, min(candidates, number))
    boxes = jnp.broadcast_to(boxes, (number, classes, 4))
    chosen = boxes[index, jnp.arange(classes)[:, None]]
    kept = suppress(chosen, top > threshold, overlap, inclusive)
    labels = jnp.broadcast_to(jnp.arange(classes)[:, None], index.shape)
    found = {"boxes": chosen.reshape(-1, 4), "labels": labels.ravel(), "index": index.ravel()}
    return _best(jnp.where(kept, top, -1).ravel(), found, threshold, detections)


def best_of_pairs(
    boxes: Float[Array, "a _ 4"],
    scores: Float[Array, "a c"],
    *,
    threshold: float,
    overlap: float,
    candidates: int,
    detections: int,
    inclusive: bool = False,
) -> dict[str, jax.Array]:
    """As `best_of_classes`, but `candidates` are the highest scores of all classes together."""
    number, classes = scores.shape
    found = jnp.where(jnp.isfinite(scores) & (scores > threshold), scores, -1).ravel()
    top, place = lax.top_k(found, min(candidates, found.size))
    index, labels = place // classes, place % classes
    chosen = jnp.broadcast_to(boxes, (number, classes, 4))[index, labels]
    kept = suppress(chosen, top > threshold, overlap, inclusive, labels)
    found = {"boxes": chosen, "labels": labels, "index": index}
    return _best(jnp.where(kept, top, -1), found, threshold, detections)


def _best(
    scores: Float[Array, " k"], found: dict[str, jax.Array], threshold: float, detections: int
) -> dict[str, jax.Array]:
    """The detections of highest scores."""
    size = min(detections, scores.size)
    scores, place = lax.top_k(scores, size)
    valid = scores > threshold
    result = {name: x[place] for name, x in found.items()} | {"scores": scores}
    result = {
        name: jnp.where(valid.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.zeros((), x.dtype))
        for name, x in result.items()
    }
    result["valid"] = valid
    return {
        name: jnp.pad(x, ((0, detections - size), *((0, 0),) * (x.ndim - 1)))
        for name, x in result.items()
    }
