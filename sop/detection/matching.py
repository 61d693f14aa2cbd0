"""Which object an anchor or a proposal answers for."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from sop.detection import boxes as box
from sop.ops import at_least_float32
from sop.ops.annotations import Array


class Match(NamedTuple):
    """Of each of A boxes of an image.

    Attributes:
      index: int32 [A], its object, where it is positive; else the one it overlaps most.
      positive: bool [A], it answers for an object.
      negative: bool [A], it answers for the background; the others are left out.
    """

    index: Int[Array, "*batch a"]
    positive: Bool[Array, "*batch a"]
    negative: Bool[Array, "*batch a"]


def trainable(
    targets: dict[str, jax.Array], size: jax.Array, inclusive: bool
) -> dict[str, jax.Array]:
    """The objects a detector is trained for: cut off at the image, those without area left out.

    Args:
      targets: 'boxes' [B, N, 4], 'labels' [B, N], 'valid' [B, N], perhaps 'crowd' [B, N]; others
        stay.
      size: [B, 1, 2], height and width.
      inclusive: of the boxes that come out.
    """
    found = box.clip(jnp.nan_to_num(at_least_float32(targets["boxes"])), size)
    valid = targets["valid"] & box.has_area(found) & jnp.isfinite(targets["boxes"]).all(-1)
    if "crowd" in targets:
        valid &= ~targets["crowd"]
    return {**targets, "boxes": found - box.last_pixel(inclusive), "valid": valid}


@jax.named_scope("matching")
def match(
    overlaps: Float[Array, "*batch a n"],
    valid: Bool[Array, "*batch n"],
    positive: float,
    negative: float,
    least: float | None = None,
    all_best: bool = False,
    own: bool = False,
) -> Match:
    """Matches boxes to objects by their overlap (Ren et al., NeurIPS 2015, section 3.1.2).

    Args:
      overlaps: IoU of each box with each object.
      valid: False for what only fills up the number of objects, and for objects left out.
      positive: the least overlap that makes a box answer for the object that it overlaps most.
      negative: the overlap under which a box is background.
      least: objects whose best box overlaps them by this or more get that box whatever its
        overlap; 0 means by more than 0. None: they do not.
      all_best: all boxes that overlap an object as much as its best does, not the first alone.
      own: a box that an object got so answers all the same for the object that it overlaps most, as
        in torchvision's Faster R-CNN; mmdetection and SSD let it answer for the one that got it.
    """
    overlaps = jnp.where(valid[..., None, :], overlaps, -1)
    highest = overlaps.max(-1)
    index = overlaps.argmax(-1).astype(jnp.int32)
    is_positive = highest >= positive
    is_negative = highest < negative
    if least is not None:
        best = overlaps.max(-2, keepdims=True)
        wanted = valid[..., None, :] & (best >= least) & (best > 0)
        if all_best:
            theirs = wanted & (overlaps == best)
        else:
            boxes = jnp.arange(overlaps.shape[-2])[:, None]
            theirs = wanted & (boxes == overlaps.argmax(-2)[..., None, :])
        given = theirs.any(-1)
        is_positive |= given
        if not own:  # of several objects the last one, as where each overwrites the one before
            last = overlaps.shape[-1] - 1 - theirs[..., ::-1].argmax(-1)
            index = jnp.where(given, last.astype(jnp.int32), index)
    return Match(index, is_positive, is_negative & ~is_positive)
