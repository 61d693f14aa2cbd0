"""Square roots by a Padé approximant, whose derivative solves a Lyapunov equation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jaxtyping import Float

from sop.ops.annotations import FeatureMap, Matrices
from sop.ops.arguments import require_feature_map, require_square
from sop.ops.covariance import centre, positions, second_moment
from sop.ops.derivatives import linear
from sop.ops.matrix_functions import product, symmetrize, transpose
from sop.ops.precision import at_least_float32, einsum, magnitude

# With s = √a, s ((1 + s)¹¹ + (1 − s)¹¹) / ((1 + s)¹¹ − (1 − s)¹¹) is rational in a and meets √a to
# order 11 at a = 1: the [5/5] approximant there. Its partial fractions have no cancellation,
# r(a) = 1/11 + a g(a),  g(a) = 2/11 Σⱼ (1 + tⱼ)/(a + tⱼ),  tⱼ = tan²(jπ/11).
_AT_ZERO = 1 / 11
_POLES = np.tan(np.arange(1, 6) * np.pi / 11) ** 2
_WEIGHTS = 2 / 11 * (1 + _POLES)
# The poles but the least as one fraction, coefficients from a⁰ up.
_DENOMINATOR = np.poly(-_POLES[1:])[::-1]
_NUMERATOR = sum(
    weight * np.poly(-np.delete(_POLES, [0, j]))[::-1]
    for j, weight in enumerate(_WEIGHTS[1:], start=1)
)
_STEPS = 8  # of the sign iteration, as published; the least eigenvalue, 1/11, is 0.999 after them
_LEAST = 2.0**-100


def matrix_sqrt_pade(a: Matrices) -> Matrices:
    """Square root of positive semi-definite matrices by the [5/5] Padé approximant of √ around 1.

    A = a/‖a‖_F;  y = √‖a‖_F/11 · (I + 2 A Σⱼ (1 + tⱼ)(A + tⱼI)⁻¹),  tⱼ = tan²(jπ/11), j = 1 … 5.
    The derivative, in both modes, is that of the root itself: the solution of y dy + dy y = da, by
    eight Newton–Schulz steps towards the matrix sign, B ← ½ B (3I − B²), D ← ½ (3D − D B² − B² D +
    B D B), from B = y/√‖a‖_F. It is not that of the approximant, whose relative error at an
    eigenvalue λ is about 2((1 − s)/(1 + s))¹¹, s² = λ/‖a‖_F. Reverse mode keeps y alone. Where a
    is zero both are zero.
    Song, Sebe and Wang, "Fast Differentiable Matrix Square Root", ICLR 2022, sections 3.1 and 3.2.

    Args:
      a: matrices [..., C, C], any floating dtype; only their symmetric part counts.

    Returns:
      [..., C, C], float32 (float64 for float64 a).

    Raises:
      UsageError: a is not a stack of square matrices.

    >>> import jax.numpy as jnp
    >>> matrix_sqrt_pade(4.0 * jnp.eye(2)).round(3).tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    """
    require_square(a)
    return _pade_sqrt(symmetrize(at_least_float32(a)))


def sqrt_cov_pade(x: FeatureMap) -> Float[jax.Array, "b c c"]:
    """`matrix_sqrt_pade(covariance(x))`, also where the covariance would leave float32's range.

    With fewer positions than channels value and reverse mode run on the n × n Gram matrix: the
    approximant of XᵀX is a multiple of I and an Xᵀ g(XXᵀ) X, and so are all iterates B of the
    Lyapunov equation a multiple of I and an Xᵀ M X.

    Args:
      x: features [B, H, W, C], any floating dtype.

    Returns:
      [B, C, C], float32 (float64 for float64 x).

    Raises:
      UsageError: x is not a floating [B, H, W, C] with at least one position and one channel.

    >>> import jax.numpy as jnp
    >>> sqrt_cov_pade(jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1)).round(3).tolist()
    [[[1.0]]]
    """
    require_feature_map(x)
    x = centre(positions(x))
    size = magnitude(x, (1, 2), _LEAST)
    x = x / (size * math.sqrt(x.shape[1]))
    return size * (_gram_sqrt if x.shape[1] < x.shape[2] else _dense_sqrt)(x)


def _g(a):
    """g(a), for eigenvalues in [0, 1].

    The fraction of the least pole stands apart: its denominator has condition number 13, that of
    the others together 8, but that of all five 94.
    """
    identity = jnp.eye(a.shape[-1], dtype=a.dtype)
    squared = product(a, a)

    c, d = _DENOMINATOR.tolist(), _NUMERATOR.tolist()
    denominator = c[0] * identity + c[2] * squared + c[4] * product(squared, squared)
    denominator += product(c[1] * identity + c[3] * squared, a)
    numerator = d[0] * identity + d[2] * squared + product(d[1] * identity + d[3] * squared, a)
    # In one call: two of LAPACK's at a time can wait for each other's threads for ever (jaxlib).
    denominators = jnp.stack([a + _POLES[0].item() * identity, denominator])
    numerators = jnp.stack([jnp.broadcast_to(_WEIGHTS[0].item() * identity, a.shape), numerator])
    factors = jnp.linalg.cholesky(denominators, symmetrize_input=False)
    return symmetrize(cho_solve((factors, True), numerators).sum(axis=0))


def _normalized(a):
    """a/‖a‖_F and √‖a‖_F, with zeros for both where a is zero."""
    size = magnitude(a, (-2, -1), _LEAST)
    a = a / size
    squares = jnp.sum(a * a, axis=(-2, -1), keepdims=True)
    vanishes = squares == 0
    norm = jnp.sqrt(jnp.where(vanishes, 1, squares))
    return a / norm, jnp.where(vanishes, 0, jnp.sqrt(norm) * jnp.sqrt(size))


def _over(a, root):
    """a/root, or zero where the root is zero."""
    return a / jnp.where(root == 0, jnp.inf, root)


@jax.custom_jvp
def _pade_sqrt(a):
    a, root = _normalized(a)
    return root * (_AT_ZERO * jnp.eye(a.shape[-1], dtype=a.dtype) + symmetrize(product(_g(a), a)))


@_pade_sqrt.defjvp
def _pade_sqrt_jvp(primals, tangents):
    (a,), (da,) = primals, tangents
    y = _pade_sqrt(a)
    _, root = _normalized(a)

    def solve(residuals, arrays):
        (b, root), (d,) = residuals, arrays
        return [_lyapunov(b, _over(symmetrize(d), root))]

    [dy] = linear(solve, solve, [da], [_over(y, root), root], like=[y])
    return y, dy


def _lyapunov(b, d):
    """The symmetric solution z of b z + z b = d, for symmetric d and b of eigenvalues in (0, 1]."""
    for step in range(_STEPS):
        db = product(d, b)
        dbb = product(db, b)
        d = 0.5 * (3 * d - dbb - transpose(dbb) + product(b, transpose(db)))
        if step < _STEPS - 1:
            b = 1.5 * b - 0.5 * product(product(b, b), b)
    return 0.5 * d


def _dense_sqrt(x):
    return _pade_sqrt(second_moment(x))


@jax.custom_jvp
def _gram_sqrt(x):
    x, _, rest, root = _gram(x)
    identity = jnp.eye(x.shape[2], dtype=x.dtype)
    return root * (_AT_ZERO * identity + einsum("bnc,bnd->bcd", x, _times(rest, x)))


@_gram_sqrt.defjvp
def _gram_sqrt_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents

    def there(residuals, arrays):
        return [jax.jvp(_dense_sqrt, tuple(residuals), tuple(arrays))[1]]

    def back(residuals, arrays):
        return [_gram_pullback(*residuals, *arrays)]

    y = _gram_sqrt(x)
    [dy] = linear(there, back, [dx], [x], like=[y])
    return y, dy


def _times(a, x):
    return einsum("bmn,bnc->bmc", a, x)


def _gram(x):
    """X/‖XXᵀ‖_F^½, its Gram matrix, g of that, and ‖XXᵀ‖_F^½."""
    gram, root = _normalized(product(x, x))
    return _over(x, root), gram, _g(gram), root


def _gram_pullback(x, cotangent):
    """2 X z for the solution z of the Lyapunov equation, whose left factor X stays n × C.

    In D ← ½ (3D − D B² − B² D + B D B), U = X D, B = βI + Xᵀ M X and X B = (βI + G M) X.
    """
    x, gram, m, _ = _gram(x)
    u = einsum("bnc,bcd->bnd", x, symmetrize(cotangent))
    beta = _AT_ZERO
    identity = jnp.eye(x.shape[1], dtype=x.dtype)
    for step in range(_STEPS):
        left = beta * identity + product(gram, m)
        squared = 2 * beta * m + product(product(m, gram), m)
        on_the_right = product(u, x)
        mixed = product(_times(left, on_the_right), m) - product(on_the_right, squared)
        factor = (3 - beta**2) * identity + beta * left - _times(left, left)
        u = 0.5 * (_times(factor, u) + _times(mixed, x))
        if step < _STEPS - 1:
            cubed = beta * squared + beta**2 * m + product(product(m, gram), squared)
            m, beta = 1.5 * m - 0.5 * cubed, 1.5 * beta - 0.5 * beta**3
    return u
