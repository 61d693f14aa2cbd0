"""Losses of boxes; those of classes are optax's."""

import jax.numpy as jnp
from jaxtyping import Float

from sop.ops.annotations import Array


def smooth_l1(difference: Float[Array, "*shape"], beta: float = 1.0) -> Float[Array, "*shape"]:
    """x²/(2β) where |x| < β, else |x| − β/2 (Girshick, ICCV 2015, eq. 3, for β = 1)."""
    size = jnp.abs(difference)
    # Squares are taken of what is below β alone, so that none overflows.
    near = jnp.minimum(size, beta)
    return near * near / (2 * beta) + (size - near)
