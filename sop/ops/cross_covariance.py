"""Covariance of two sets of channels, and a power of its singular values by power iteration."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sop.ops.annotations import Array
from sop.ops.arguments import require_iterations
from sop.ops.precision import at_least_float32, einsum

_SMALLEST_NORM = 1e-12
_ZERO = 1e-30  # singular values up to this count as zero


def cross_covariance(
    x: Float[Array, "b n h c"], y: Float[Array, "b n h d"]
) -> Float[jax.Array, "b h c d"]:
    """Cross-covariance over positions, (1/n) Σᵢ (xᵢ − x̄)(yᵢ − ȳ)ᵀ, of each head.

    x̄ and ȳ are numbers, the means of all entries of the head over positions and channels, as in
    the code of Xie et al., "SoT: Delving Deeper into Classification Head for Transformer", arXiv
    2104.10935, and of Gao et al., "Tuning Pre-trained Model via Moment Probing", ICCV 2023.

    Args:
      x, y: n positions and h heads, any floating dtype.

    Returns:
      [B, h, c, d], at least float32.

    >>> x = jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1)
    >>> cross_covariance(x, -x).tolist()
    [[[[-1.0]]]]
    """
    # Heads in front here: transposed for the product, x would be copied twice more each way on CPU.
    x, y = (jnp.swapaxes(at_least_float32(each), 1, 2) for each in (x, y))
    x, y = (each - each.mean((2, 3), keepdims=True) for each in (x, y))
    return einsum("bhnc,bhnd->bhcd", x, y) / x.shape[2]


def singular_value_power(
    a: Float[Array, "*batch c d"],
    start: Float[Array, " d"],
    alpha: float = 0.5,
    num_iters: int = 1,
    epsilon: float | Float[Array, "*#batch 1 1"] = 1e-5,
) -> Float[jax.Array, "*batch c d"]:
    """Matrices with their singular values to the power α, the largest one's by power iteration.

    v ← `start`; N times u ← A v/‖A v‖, v ← Aᵀu/‖Aᵀu‖; λ = uᵀA v; the result is
    λ^α u vᵀ + (A − λ u vᵀ)/(λ^(1−α) + ε): the largest singular value has its power, the others are
    divided as it is. Zero for A = 0. The gradient is that of these steps.
    Xie et al., "SoT: Delving Deeper into Classification Head for Transformer", arXiv 2104.10935.

    Args:
      a: A, any floating dtype.
      start: first v, of any length but zero.
      alpha: α in (0, 1].
      num_iters: N ≥ 1.
      epsilon: ε.

    Returns:
      the shape of a, at least float32.

    Raises:
      UsageError: num_iters is no positive int.

    >>> a = jnp.array([[0.0, 4.0], [0.0, 0.0]])
    >>> singular_value_power(a, jnp.ones(2)).round(3).tolist()
    [[0.0, 2.0], [0.0, 0.0]]
    """
    require_iterations(num_iters)
    a = at_least_float32(a)
    v = jnp.broadcast_to(start.astype(a.dtype), (*a.shape[:-2], a.shape[-1]))
    for _ in range(num_iters):
        u = unit(einsum("...cd,...d->...c", a, v), -1)
        v = unit(einsum("...cd,...c->...d", a, u), -1)
    value = einsum("...c,...cd,...d->...", u, a, v)[..., None, None]
    direction = u[..., :, None] * v[..., None, :]
    rest = a - value * direction
    return _power(value, alpha) * direction + rest / (_power(value, 1 - alpha) + epsilon)


def unit(x: Float[Array, "*shape"], axis: int) -> Float[jax.Array, "*shape"]:
    """x over its norm along an axis, or over 1e-12 where that is larger.

    >>> unit(jnp.array([3.0, 4.0]), 0).round(3).tolist(), unit(jnp.zeros(2), 0).tolist()
    ([0.6000000238418579, 0.800000011920929], [0.0, 0.0])
    """
    square = jnp.sum(x * x, axis, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, _SMALLEST_NORM**2))


def _power(x, alpha):
    vanishes = x <= _ZERO
    return jnp.where(vanishes, 0, jnp.where(vanishes, 1, x) ** alpha)
