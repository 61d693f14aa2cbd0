"""Functions of symmetric positive semi-definite matrices."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sop.errors import UsageError
from sop.ops.annotations import Array, Matrices
from sop.ops.arguments import require_iterations, require_precision, require_square
from sop.ops.derivatives import with_pullback
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
    iterate = functools.partial(
        newton_schulz, num_iters=num_iters, inverse=inverse, precision=precision
    )
    return jax.jvp(iterate, (a,), (direction,))


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


def matrix_power(a: Matrices, alpha: float) -> Matrices:
    """Power α of symmetric positive semi-definite matrices by eigendecomposition, U Λ^α Uᵀ.

    Eigenvalues below C·ε·λ_max, which carry no information in the working precision, count as
    zero, and pairs of them do not enter the gradient; divided differences of equal eigenvalues are
    their limit. So the gradient is finite where eigenvalues repeat or vanish, and zero for a = 0.
    Li et al., "Is Second-order Information Helpful for Large-scale Visual Recognition?", ICCV
    2017, equations (3) and (7)–(9).

    Args:
      a: matrices [..., C, C], any floating dtype; only their symmetric part counts.
      alpha: the power, a number above 0; ½ in the paper.

    Returns:
      [..., C, C], float32 (float64 for float64 a).

    Raises:
      UsageError: a is not a stack of square matrices, or alpha is not positive.

    >>> import jax.numpy as jnp
    >>> matrix_power(4.0 * jnp.eye(2), 0.5).round(3).tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    """
    require_square(a)
    if not alpha > 0:
        raise UsageError(f"alpha is {alpha!r}: give a power above 0.")
    return _eigen_power(symmetrize(at_least_float32(a)), alpha)


def matrix_log(a: Matrices, epsilon: float | Float[Array, "..."] = 1e-3) -> Matrices:
    """Logarithm of positive semi-definite matrices, log(a + εI) = U log(Λ + ε) Uᵀ.

    Eigenvalues below C·eps·λ_max, eps the working precision, count as zero; pairs of them do not
    enter the gradient where ε is below that as well.
    Ionescu, Vantzos and Sminchisescu, "Matrix Backpropagation for Deep Networks with Structured
    Layers", ICCV 2015, section 5.

    Args:
      a: matrices [..., C, C], any floating dtype; only their symmetric part counts.
      epsilon: ε > 0, a number or one for each matrix, [...]; counts as a constant in gradients.

    Returns:
      [..., C, C], float32 (float64 for float64 a).

    Raises:
      UsageError: a is not a stack of square matrices.

    >>> import jax.numpy as jnp
    >>> matrix_log(4.0 * jnp.eye(2), 1e-9).round(3)[0, 0]
    Array(1.386, dtype=float32)
    """
    require_square(a)
    a = symmetrize(at_least_float32(a))
    return _eigen_log(a, jnp.broadcast_to(jnp.asarray(epsilon, a.dtype), a.shape[:-2]))


def _matmul(a, b):
    return einsum("...ij,...jk->...ik", a, b)


def _eigen(a):
    """Eigenvalues, with those that are rounding error set to zero, and what counts as such."""
    values, vectors = jnp.linalg.eigh(a)
    floor = a.shape[-1] * jnp.finfo(a.dtype).eps * values[..., -1:]
    return jnp.where(values <= floor, 0, values), vectors, floor


def _conjugate(vectors, diagonal):
    """U diag(·) Uᵀ."""
    return _matmul(vectors * diagonal[..., None, :], transpose(vectors))


def _spectral_tangent(vectors, differences, da):
    """Daleckii–Krein: in the eigenbasis da meets the divided differences, entry by entry."""
    inner = differences * _matmul(_matmul(transpose(vectors), da), vectors)
    return _matmul(_matmul(vectors, inner), transpose(vectors))


def _pairs(values):
    """Of each pair of values, the larger and the smaller."""
    left, right = values[..., :, None], values[..., None, :]
    return jnp.maximum(left, right), jnp.minimum(left, right)


def _power_of(values, alpha):
    return jnp.where(values == 0, 0, jnp.where(values == 0, 1, values) ** alpha)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _eigen_power(a, alpha):
    values, vectors, _ = _eigen(a)
    return _conjugate(vectors, _power_of(values, alpha))


@_eigen_power.defjvp
def _eigen_power_jvp(alpha, primals, tangents):
    (a,), (da,) = primals, tangents
    values, vectors, _ = _eigen(a)
    # (λᵢ^α − λⱼ^α)/(λᵢ − λⱼ); with λ the larger and 1 + d ≤ 1 the ratio of the two,
    # λ^(α−1) ((1 + d)^α − 1)/d.
    large, small = _pairs(values)
    positive = large > 0
    large = jnp.where(positive, large, 1)
    d = (small - large) / large
    inside = (d < 0) & (d > -1)
    safe = jnp.where(inside, d, -0.5)
    ratio = jnp.where(inside, jnp.expm1(alpha * jnp.log1p(safe)) / safe, jnp.where(d < 0, 1, alpha))
    differences = jnp.where(positive, large ** (alpha - 1) * ratio, 0)
    y = _conjugate(vectors, _power_of(values, alpha))
    return y, _spectral_tangent(vectors, differences, da)


@jax.custom_jvp
def _eigen_log(a, epsilon):
    values, vectors, _ = _eigen(a)
    return _conjugate(vectors, jnp.log(values + epsilon[..., None]))


@_eigen_log.defjvp
def _eigen_log_jvp(primals, tangents):
    (a, epsilon), (da, _) = primals, tangents
    values, vectors, floor = _eigen(a)
    epsilon = epsilon[..., None]
    large, small = _pairs(values)
    known = (large > 0) | (epsilon > floor)[..., None]
    # (log λᵢ − log λⱼ)/(λᵢ − λⱼ) = log(1 + d)/(dλ), of λ + ε.
    large, small = large + epsilon[..., None], small + epsilon[..., None]
    d = (small - large) / large
    near = jnp.where((d < 0) & (d > -0.5), d, -0.5)
    far = jnp.where(d > -0.5, 0.5, d)
    ratio = jnp.where(d > -0.5, jnp.log1p(near) / near, (jnp.log(small) - jnp.log(large)) / far)
    ratio = jnp.where(d < 0, ratio, 1)
    y = _conjugate(vectors, jnp.log(values + epsilon))
    return y, _spectral_tangent(vectors, jnp.where(known, ratio / large, 0), da)
