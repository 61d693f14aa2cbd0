"""The adaptive rate at which DropCov drops channels."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from sop.errors import UsageError
from sop.ops.annotations import Array
from sop.ops.precision import magnitude


def drop_rate(
    weights: Float[Array, "b c"], covariance: Float[Array, "b c c"], axis_name: str | None = None
) -> Float[jax.Array, ""]:
    """1 − (10/log₂ C) · cos(w, Σ1), cut off to [0, 1], of the cosines' mean over the batch.

    Where the channels that count are those that correlate with the others, little is dropped. The
    cosine is 0 where Σ is; log₂ C counts as at least 1.
    Wang et al., "DropCov: A Simple yet Effective Method for Improving Deep Architectures", NeurIPS
    2022, section 3.3.

    Args:
      weights: w, what each channel counts, [B, C].
      covariance: Σ, [B, C, C], whatever its scale.
      axis_name: mapped axis that the mean is taken over as well.

    Returns:
      [], a constant in gradients.

    Raises:
      UsageError: the shapes do not fit together.

    >>> drop_rate(jnp.array([[1.0, 0.0]]), jnp.array([[[1.0, -1.0], [-1.0, 9.0]]])).item()
    1.0
    """
    if covariance.shape != (*weights.shape, weights.shape[-1]):
        raise UsageError(
            f"covariance has shape {covariance.shape} for weights of shape {weights.shape}: "
            "give [B, C, C] for [B, C]."
        )
    weights, sums = lax.stop_gradient((weights, covariance.sum(2)))
    cosines = jnp.sum(_unit(weights) * _unit(sums), axis=1)
    mean = cosines.mean()
    if axis_name is not None:
        mean = lax.pmean(mean, axis_name)
    return jnp.clip(1 - 10 / max(math.log2(weights.shape[1]), 1) * mean, 0, 1)


def _unit(a):
    a = a / magnitude(a, 1, 2.0**-100)
    squares = jnp.sum(a * a, axis=1, keepdims=True)
    return a * lax.rsqrt(jnp.where(squares == 0, 1, squares))
