"""Which boxes a loss is taken over."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from sop.ops.annotations import Array


def ranks(priority: Float[Array, "*batch a"]) -> Int[Array, "*batch a"]:
    """The place of each entry when the highest comes first; of equal ones the first comes first."""
    order = jnp.argsort(-priority, axis=-1, stable=True)
    return jnp.argsort(order, axis=-1)


def hard_negatives(
    losses: Float[Array, "*batch a"],
    positive: Bool[Array, "*batch a"],
    negative: Bool[Array, "*batch a"],
    ratio: float,
) -> Bool[Array, "*batch a"]:
    """The negatives of highest loss, `ratio` times as many as an image has positives.

    Liu et al., ECCV 2016, section 2.2.
    """
    count = jnp.floor(ratio * positive.sum(-1, keepdims=True))
    # Not differentiated: which ones are taken is no function that a gradient could follow.
    order = ranks(jnp.where(negative, lax.stop_gradient(losses), -jnp.inf))
    return negative & (order < count)


class Sample(NamedTuple):
    """Boxes drawn from those of an image.

    Attributes:
      index: int32 [n], which box.
      positive: bool [n], it is one that answers for an object; these come first.
      valid: bool [n], False where there were too few to draw.
    """

    index: Int[Array, " n"]
    positive: Bool[Array, " n"]
    valid: Bool[Array, " n"]


def random_sample(
    key: jax.Array,
    positive: Bool[Array, " a"],
    negative: Bool[Array, " a"],
    count: int,
    share: float,
) -> Sample:
    """`count` boxes at random: positives to a share of ⌊share · count⌋, the others negatives.

    Of positives there may be fewer, then there are more negatives; of these as well, then there are
    fewer boxes. Ren et al., NeurIPS 2015, section 3.1.3.
    """
    most, size = int(share * count), len(positive)
    priority = jax.random.uniform(key, (size,))
    # The highest of a kind are drawn: each kind's own are as good as drawn apart.
    first, positives = lax.top_k(jnp.where(positive, priority, -1), min(most, size))
    second, negatives = lax.top_k(jnp.where(negative, priority, -1), min(count, size))
    drawn = first >= 0
    rest = (second >= 0) & (jnp.arange(len(second)) < count - drawn.sum())
    taken = jnp.concatenate([drawn, rest])
    order = jnp.argsort(~taken, stable=True)[:count]
    index = jnp.concatenate([positives, negatives])[order].astype(jnp.int32)
    is_positive = jnp.concatenate([drawn, jnp.zeros_like(rest)])[order]
    missing = (0, count - len(order))
    return Sample(*(jnp.pad(x, missing) for x in (index, is_positive, taken[order])))
