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
