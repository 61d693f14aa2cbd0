"""Which boxes a loss is taken over."""

import jax
import jax.numpy as jnp
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
    order = ranks(jnp.where(negative, jax.lax.stop_gradient(losses), -jnp.inf))
    return negative & (order < count)
