"""Square roots of symmetric positive semi-definite matrices by Newton–Schulz iterations."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sop.ops.annotations import Array, Matrices
from sop.ops.arguments import require_iterations, require_precision, require_square
from sop.ops.derivatives import with_pullback
from sop.ops.on_chip import on_chip
from sop.ops.precision import Precision, at_least_float32, einsum


def transpose(a):
    """Swaps the last two axes."""
    return jnp.swapaxes(a, -1, -2)


def symmetrize(a: Matrices) -> Matrices:
    """½ (a + aᵀ)."""
    return 0.5 * (a + transpose(a))


def product(
    a: Float[Array, "*batch i k"],
    b: Float[Array, "*batch j k"],
    precision: Precision = "highest",
) -> Float[jax.Array, "*batch i j"]:
    """a b for symmetric b, contracting the last axes of both: the layout that is read in order."""
    return einsum("...ij,...kj->...ik", a, b, precision=precision)


# Derivatives of the square and cube of a symmetric matrix in a symmetric direction. What the
# product rule adds up are transposes of one another: half of its multiplications suffice.


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _square(a, precision):
    return product(a, a, precision)


@_square.defjvp
def _square_jvp(precision, primals, tangents):
    (a,), (da,) = primals, tangents
    w = product(da, a, precision)
    return _square(a, precision), w + transpose(w)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _cube(a, precision):
    return product(product(a, a, precision), a, precision)


@_cube.defjvp
def _cube_jvp(precision, primals, tangents):
    (a,), (da,) = primals, tangents
    w = product(da, a, precision)
    v = product(w + 0.5 * transpose(w), a, precision)
    return _cube(a, precision), v + transpose(v)


def newton_schulz(
    a: Matrices, num_iters: int, inverse: bool = False, precision: Precision = "highest"
) -> Matrices:
    """The N-th Newton–Schulz iterate Y_N of symmetric a, or Z_N with `inverse`; Y_N = a Z_N.

    Everything in Y ← YT, Z ← TZ, T = ½(3I − ZY) is a polynomial of a and commutes. So P = ZY
    suffices to find T, P ← P T², and Y_N or Z_N is a product of T's. Two iterations from P make
    the factor Q = ¼(3I − P)(3I − P T²), a quartic whose value takes two multiplications,
    16 Q = (P² − 9/2 P)² + 27/4 P² − 39 P + 36 I, and P ← P Q²: ten multiplications for N = 5
    where the iteration as written takes twelve.
    """
    iterate = functools.partial(_iterate, num_iters=num_iters, inverse=inverse, precision=precision)
    [found] = _on_chip(lambda a: [iterate(a)], a, results=1, precision=precision)
    return found


def _on_chip(f, *matrices, results, precision):
    # A kernel has no products in three passes.
    return f(*matrices) if precision == "high" else on_chip(f, *matrices, results=results)


def _iterate(a, num_iters, inverse, precision):
    square = functools.partial(_square, precision=precision)
    cube = functools.partial(_cube, precision=precision)
    times = functools.partial(product, precision=precision)
    identity = jnp.eye(a.shape[-1], dtype=a.dtype)
    p, left = a, num_iters
    out = None if inverse else a
    if num_iters % 2:
        out = 1.5 * identity - 0.5 * a if inverse else 1.5 * a - 0.5 * square(a)
        left -= 1
        if left:
            p = 2.25 * a - 1.5 * square(a) + 0.25 * cube(a)
    while left:
        squared = square(p)
        q = (square(squared - 4.5 * p) + 6.75 * squared - 39 * p + 36 * identity) / 16
        out = q if out is None else times(out, q)
        left -= 2
        if left:
            p = times(p, square(q))
    assert out is not None
    return out


def newton_schulz_and_adjoint(
    a: Matrices,
    direction: Matrices,
    num_iters: int,
    inverse: bool = False,
    precision: Precision = "highest",
) -> tuple[Matrices, Matrices]:
    """The iterate and the vector–Jacobian product of a symmetric cotangent, [..., C, C] each.

    The derivative of a polynomial at a symmetric matrix, Σ cₖ Σᵢ aⁱ (·) aᵏ⁻¹⁻ⁱ, is its own
    adjoint: a forward derivative along the cotangent is the backward pass, and keeps none of the
    iterates.
    """
    iterate = functools.partial(_iterate, num_iters=num_iters, inverse=inverse, precision=precision)

    def both(a, direction):
        return jax.jvp(iterate, (a,), (direction,))

    found, adjoint = _on_chip(both, a, direction, results=2, precision=precision)
    return found, adjoint


def matrix_sqrt(
    a: Matrices, num_iters: int = 5, autodiff: bool = False, precision: Precision = "highest"
) -> Matrices:
    """Square root of positive semi-definite matrices by N coupled Newton–Schulz iterations.

    A = a / tr a;  Y₀ = A, Z₀ = I;  T = ½(3I − ZY), Y ← YT, Z ← TZ, N times;  √(tr a) · Y.
    Truncated: the result is the N-th iterate, not the limit, and so is its gradient. Where the
    trace is zero both are zero.
    Li et al., "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix
    Square Root Normalization", CVPR 2018, equations (2)–(5); backward pass (7)–(11).

    Args:
      a: matrices [..., C, C], any floating dtype; only their symmetric part counts.
      num_iters: N ≥ 1.
      autodiff: differentiate the iteration itself, most of whose products are then kept, instead
        of the hand-derived backward pass. The gradients are equal.
      precision: see `isqrt_cov`.

    Returns:
      [..., C, C], float32 (float64 for float64 a).

    Raises:
      UsageError: a is not a stack of square matrices, num_iters no positive int, or precision
        unknown.

    >>> import jax.numpy as jnp
    >>> matrix_sqrt(4.0 * jnp.eye(2), num_iters=12).round(3).tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    """
    require_square(a)
    require_iterations(num_iters)
    require_precision(precision)
    a = symmetrize(at_least_float32(a))
    return (_trace_scaled_root if autodiff else _matrix_sqrt)(a, num_iters, precision)


def matrix_inverse_sqrt(a: Matrices, num_iters: int = 5) -> Matrices:
    """Inverse square root of positive semi-definite matrices by N Newton–Schulz iterations.

    Z_N / √(tr a) of the iteration of `matrix_sqrt`, at most 1.5ᴺ/√(tr a) where a is singular. The
    backward pass is hand-derived and keeps a alone. Where the trace is zero both are zero.
    Huang et al., "Iterative Normalization: Beyond Standardization towards Efficient Whitening",
    CVPR 2019, section 3.2.

    Args:
      a: matrices [..., C, C], any floating dtype; only their symmetric part counts.
      num_iters: N ≥ 1.

    Returns:
      [..., C, C], float32 (float64 for float64 a).

    Raises:
      UsageError: a is not a stack of square matrices, or num_iters no positive int.

    >>> import jax.numpy as jnp
    >>> matrix_inverse_sqrt(4.0 * jnp.eye(2), num_iters=12).round(3).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    require_square(a)
    require_iterations(num_iters)
    return with_pullback(
        functools.partial(_trace_scaled_inverse_root, num_iters=num_iters),
        functools.partial(_matrix_inverse_sqrt_pullback, num_iters=num_iters),
    )(symmetrize(at_least_float32(a)))


def trace_normalized(a: Matrices) -> Matrices:
    """a / tr a, or zero where the trace is zero or negative.

    >>> trace_normalized(jnp.eye(2)).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    return _by_trace(a)[0]


def _by_trace(a):
    """a / tr a and √(tr a), with zeros for both where the trace is zero or negative."""
    trace = jnp.trace(a, axis1=-2, axis2=-1)[..., None, None]
    vanishes = trace <= 0  # not of NaN, nor does dividing by ∞ hide one
    root = jnp.where(vanishes, 0, jnp.sqrt(jnp.where(vanishes, 1, trace)))
    return a / jnp.where(vanishes, jnp.inf, trace), root


def _trace_scaled_root(a, num_iters, precision):
    a, root = _by_trace(a)
    return root * newton_schulz(a, num_iters, precision=precision)


def _trace_scaled_inverse_root(a, num_iters):
    a, root = _by_trace(a)
    return newton_schulz(a, num_iters, inverse=True) / jnp.where(root == 0, jnp.inf, root)


def _matrix_inverse_sqrt_pullback(a, cotangent, num_iters):
    cotangent = symmetrize(cotangent)
    a, root = _by_trace(a)
    z, gradient = newton_schulz_and_adjoint(a, cotangent, num_iters, inverse=True)
    # Of Z(a/t)/√t by a, and by t = tr a.
    by_trace = -_inner(cotangent, z) / 2 - _inner(gradient, a)
    gradient += by_trace * jnp.eye(a.shape[-1], dtype=a.dtype)
    root = jnp.where(root == 0, jnp.inf, root)
    return (gradient / root / root / root,)


def _matrix_sqrt(a, num_iters, precision):
    how = {"num_iters": num_iters, "precision": precision}
    return with_pullback(
        functools.partial(_trace_scaled_root, **how),
        functools.partial(_matrix_sqrt_pullback, **how),
    )(a)


def _matrix_sqrt_pullback(a, cotangent, num_iters, precision):
    cotangent = symmetrize(cotangent)
    a, root = _by_trace(a)
    y, gradient = newton_schulz_and_adjoint(a, cotangent, num_iters, precision=precision)
    # Of √t Y(a/t) by a, and by t = tr a: pre- and post-compensation.
    by_trace = _inner(cotangent, y) / 2 - _inner(gradient, a)
    gradient += by_trace * jnp.eye(a.shape[-1], dtype=a.dtype)
    return (gradient / jnp.where(root == 0, jnp.inf, root),)


def _inner(a, b):
    return jnp.sum(a * b, axis=(-2, -1), keepdims=True)
