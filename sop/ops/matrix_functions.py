"""Functions of symmetric positive semi-definite matrices."""

import functools

import jax
import jax.numpy as jnp

from sop.ops.covariance import PRECISION, at_least_float32, require_square

_matmul = functools.partial(jnp.matmul, precision=PRECISION)


def require_iterations(num_iters):
    """Refuses, when traced, a number of Newton–Schulz iterations that is not a positive int."""
    if not isinstance(num_iters, int) or num_iters < 1:
        raise ValueError(f"num_iters is {num_iters!r}: give a whole number of at least 1.")


def matrix_sqrt(a, num_iters=5, autodiff=False):
    """Square root of positive semi-definite matrices by N coupled Newton–Schulz iterations.

    A = a / tr a;  Y₀ = A, Z₀ = I;  T = ½(3I − ZY), Y ← YT, Z ← TZ, N times;  √(tr a) · Y.
    Truncated: the result is the N-th iterate, not the limit, and so is its gradient. Where the
    trace is zero both are zero.
    Li et al., "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix
    Square Root Normalization", CVPR 2018, equations (2)–(5); backward pass (7)–(11).

    Args:
      a: symmetric matrices [..., C, C], any floating dtype.
      num_iters: N ≥ 1.
      autodiff: differentiate the iteration itself, all of whose products are then kept, instead of
        the hand-derived backward pass. The gradients are equal; this one has a forward mode too.

    Returns:
      [..., C, C], float32 (float64 for float64 a).

    Raises:
      ValueError: a is not a stack of square matrices, or num_iters no positive int.

    >>> import jax.numpy as jnp
    >>> matrix_sqrt(4.0 * jnp.eye(2), num_iters=12).round(3).tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    """
    require_square(a)
    require_iterations(num_iters)
    a = at_least_float32(a)
    identity = jnp.eye(a.shape[-1], dtype=a.dtype)
    trace = jnp.trace(a, axis1=-2, axis2=-1)[..., None, None]
    positive = trace > 0
    trace = jnp.where(positive, trace, 1)
    y = a / trace
    t = 1.5 * identity - 0.5 * y
    z = t
    y = _matmul(y, t)
    for i in range(1, num_iters):
        t = 1.5 * identity - 0.5 * _matmul(z, y)
        y = _matmul(y, t)
        if i < num_iters - 1:
            z = _matmul(t, z)
    return jnp.where(positive, jnp.sqrt(trace) * y, 0)


def matrix_power(a, alpha):
    """Power α of symmetric positive semi-definite matrices by eigendecomposition, U Λ^α Uᵀ.

    Eigenvalues below C·ε·λ_max, which carry no information in the working precision, count as
    zero, and pairs of them do not enter the gradient; divided differences of equal eigenvalues are
    their limit. So the gradient is finite where eigenvalues repeat or vanish, and zero for a = 0.
    Li et al., "Is Second-order Information Helpful for Large-scale Visual Recognition?", ICCV
    2017, equations (3) and (7)–(9).

    Args:
      a: symmetric matrices [..., C, C], any floating dtype; only their symmetric part counts.
      alpha: the power, a number above 0; ½ in the paper.

    Returns:
      [..., C, C], float32 (float64 for float64 a).

    Raises:
      ValueError: a is not a stack of square matrices, or alpha is not positive.

    >>> import jax.numpy as jnp
    >>> matrix_power(4.0 * jnp.eye(2), 0.5).round(3).tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    """
    require_square(a)
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha!r}: give a power above 0.")
    a = at_least_float32(a)
    return _eigen_power(0.5 * (a + jnp.swapaxes(a, -1, -2)), alpha)


def _eigen(a):
    """Eigenvalues with those that are rounding error set to zero, and eigenvectors."""
    values, vectors = jnp.linalg.eigh(a)
    floor = a.shape[-1] * jnp.finfo(a.dtype).eps * values[..., -1:]
    return jnp.where(values > floor, values, 0), vectors


def _compose(vectors, middle):
    return _matmul(_matmul(vectors, middle), jnp.swapaxes(vectors, -1, -2))


def _power(values, alpha):
    return jnp.where(values > 0, jnp.where(values > 0, values, 1) ** alpha, 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _eigen_power(a, alpha):
    values, vectors = _eigen(a)
    return _matmul(vectors * _power(values, alpha)[..., None, :], jnp.swapaxes(vectors, -1, -2))


@_eigen_power.defjvp
def _eigen_power_jvp(alpha, primals, tangents):
    (a,), (da,) = primals, tangents
    values, vectors = _eigen(a)
    power = _power(values, alpha)
    out = _matmul(vectors * power[..., None, :], jnp.swapaxes(vectors, -1, -2))
    # Daleckii–Krein: the derivative is the divided difference (λᵢ^α − λⱼ^α)/(λᵢ − λⱼ) in the
    # eigenbasis; with λ the larger and r = 1 + d ≤ 1 the ratio, λ^(α−1) (1 − r^α)/(1 − r).
    large = jnp.maximum(values[..., :, None], values[..., None, :])
    small = jnp.minimum(values[..., :, None], values[..., None, :])
    positive = large > 0
    large = jnp.where(positive, large, 1)
    d = (small - large) / large
    apart = d < 0
    d = jnp.where(apart & (d > -1), d, -0.5)
    ratio = jnp.where(apart, jnp.expm1(alpha * jnp.log1p(d)) / d, alpha)
    ratio = jnp.where(small > 0, ratio, 1)
    differences = jnp.where(positive, large ** (alpha - 1) * ratio, 0)
    inner = _matmul(_matmul(jnp.swapaxes(vectors, -1, -2), da), vectors)
    return out, _compose(vectors, differences * inner)
