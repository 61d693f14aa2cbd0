"""Means and maxima over positions."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from sop.ops.annotations import Array, FeatureMap
from sop.ops.arguments import require_feature_map
from sop.ops.precision import at_least_float32

_SMALLEST_POWER = 1e-6


def first_maximum(x: Float[Array, "*shape"], axes: Sequence[int]) -> Float[jax.Array, "*remaining"]:
    """Maximum over axes, whose gradient goes to the first place of several that have it.

    For the gradient x is compared with it again: no mask of x's size is kept.

    >>> x = jnp.array([[2.0, 2.0, 1.0]])
    >>> jax.grad(lambda x: first_maximum(x, (1,)).sum())(x).tolist()
    [[1.0, 0.0, 0.0]]
    """
    maximum = functools.partial(_first_maximum, axes=tuple(axes))
    return jax.checkpoint(maximum, prevent_cse=False)(x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _first_maximum(x, axes):
    return x.max(axis=axes)


@_first_maximum.defjvp
def _first_maximum_jvp(axes, primals, tangents):
    (x,), (dx,) = primals, tangents
    peak = x.max(axis=axes)
    shape = [x.shape[axis] if axis in axes else 1 for axis in range(x.ndim)]
    count = math.prod(shape)
    # XLA:CPU vectorises the minimum of floats, not of integers; these are exact up to 2²⁴ places.
    place = jnp.arange(count, dtype=jnp.float32).reshape(shape)
    first = jnp.where(x == jnp.expand_dims(peak, axes), place, count).min(axis=axes)
    return peak, jnp.where(place == jnp.expand_dims(first, axes), dx, 0).sum(axis=axes)


def generalized_mean(
    x: FeatureMap, power: Float[Array, "*#c"] | float = 3.0, epsilon: float = 1e-6
) -> Float[jax.Array, "b c"]:
    """Generalised mean over positions, y = ((1/n) Σᵢ max(xᵢ, ε)ᵖ)^(1/p), n = H·W.

    p of size below 1e-6 counts as 1e-6: the geometric mean. Powers of large entries stay in
    range.
    Radenović, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI
    2019, equation (3).

    Args:
      x: features [B, H, W, C], any floating dtype.
      power: p, one number or [1] or [C].
      epsilon: ε > 0.

    Returns:
      [B, C], float32 (float64 for float64 x).

    Raises:
      UsageError: x is not a floating [B, H, W, C] with at least one position and one channel.

    >>> generalized_mean(jnp.array([1.0, 7.0]).reshape(1, 2, 1, 1), 2.0).tolist()
    [[5.0]]
    """
    require_feature_map(x)
    x = jnp.maximum(at_least_float32(x), epsilon)
    power = jnp.asarray(power, x.dtype)
    power = jnp.where(jnp.abs(power) < _SMALLEST_POWER, _SMALLEST_POWER, power)
    # Of ratios to the entry whose power is largest, p·log(x/m) ≤ 0; the mean of their powers is in
    # (1/n, 1], and expm1 keeps its digits where p is small.
    axes = (1, 2)
    largest = jnp.where(power > 0, x.max(axes), x.min(axes))
    largest = lax.stop_gradient(largest)
    logs = power * (jnp.log(x) - jnp.log(largest)[:, None, None])
    return largest * jnp.exp(jnp.log1p(jnp.expm1(logs).mean(axes)) / power)
