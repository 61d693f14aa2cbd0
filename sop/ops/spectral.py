"""Functions of symmetric positive semi-definite matrices by eigendecomposition.

The derivative of f(a) in the eigenbasis of a meets the divided differences
(f(λᵢ) − f(λⱼ))/(λᵢ − λⱼ), entry by entry (Daleckii and Krein); those of equal eigenvalues are their
limit f'(λ). A function is a class of `value`: λ ≥ 0 [..., n] → f(λ), and `differences`: λ → those
of all pairs [..., n, n]. Both get parameters [...], constants; below `floor` [..., 1] λ were set
to 0. Derivatives of derivatives are right where eigenvalues are distinct.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sop.errors import UsageError
from sop.ops.annotations import Array, FeatureMap, Matrices
from sop.ops.arguments import require_feature_map, require_square
from sop.ops.covariance import centre, positions, second_moment
from sop.ops.matrix_functions import product, symmetrize, transpose
from sop.ops.precision import at_least_float32, einsum, magnitude


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
    return _of_matrix(_power(alpha), symmetrize(at_least_float32(a)), ())


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
    epsilon = jnp.broadcast_to(jnp.asarray(epsilon, a.dtype), a.shape[:-2])
    return _of_matrix(_Logarithm(), a, (epsilon,))


def power_cov(x: FeatureMap, alpha: float) -> Float[jax.Array, "b c c"]:
    """`matrix_power(covariance(x), alpha)`, also where the covariance would leave float32's range.

    With fewer positions than channels value and derivative take the eigenvectors of the n × n
    Gram matrix: XXᵀ = VΛVᵀ gives those of XᵀX, U = XᵀVΛ^-½, whose eigenvalue is not zero.

    Args:
      x: features [B, H, W, C], any floating dtype.
      alpha: the power, a number above 0.

    Returns:
      [B, C, C], float32 (float64 for float64 x).

    Raises:
      UsageError: x is not a floating [B, H, W, C] with at least one position and one channel, or
        alpha is not positive.

    >>> import jax.numpy as jnp
    >>> power_cov(jnp.array([1.0, 5.0]).reshape(1, 2, 1, 1), 0.5).round(3).tolist()
    [[[2.0]]]
    """
    f = _power(alpha)
    x, size = _scaled(x)
    return size ** (2 * alpha) * _of_moment(f, x, ())


def log_cov(x: FeatureMap, epsilon: float = 1e-3) -> Float[jax.Array, "b c c"]:
    """`matrix_log(covariance(x), epsilon)`, also where the covariance would leave float32's range.

    On the Gram matrix as `power_cov`: log(XᵀX + εI) = log ε · I + U diag(log(1 + λ/ε)) Uᵀ.

    Args:
      x: features [B, H, W, C], any floating dtype.
      epsilon: ε > 0.

    Returns:
      [B, C, C], float32 (float64 for float64 x).

    Raises:
      UsageError: x is not a floating [B, H, W, C] with at least one position and one channel.

    >>> import jax.numpy as jnp
    >>> log_cov(jnp.array([1.0, 5.0]).reshape(1, 2, 1, 1), 1e-9).round(3).tolist()
    [[[1.3860000371932983]]]
    """
    x, size = _scaled(x)
    # What is lost of ε below the range of float32 is far below rounding errors of Σ.
    scaled = jnp.maximum(epsilon / size / size, 1e-37)[:, 0, 0]
    shift = 2 * jnp.log(size) * jnp.eye(x.shape[2], dtype=x.dtype)
    return _of_moment(_Logarithm(), x, (scaled,)) + shift


def _scaled(x):
    """Centred positions X [B, n, C] with Σ = s² XᵀX, and s, a power of two of at least 1."""
    require_feature_map(x)
    x = centre(positions(x))
    size = magnitude(x, (1, 2))
    return x / size / math.sqrt(x.shape[1]), size


@dataclasses.dataclass(frozen=True)
class _Power:
    """λ^α."""

    alpha: float

    def value(self, values):
        return jnp.where(values == 0, 0, jnp.where(values == 0, 1, values) ** self.alpha)

    def differences(self, values, floor):
        # With λ the larger and 1 + d ≤ 1 the ratio of the two, λ^(α−1) ((1 + d)^α − 1)/d.
        alpha = self.alpha
        large, small = _pairs(values)
        positive = large > 0
        large = jnp.where(positive, large, 1)
        d = (small - large) / large
        inside = (d < 0) & (d > -1)
        safe = jnp.where(inside, d, -0.5)
        ratio = jnp.expm1(alpha * jnp.log1p(safe)) / safe
        ratio = jnp.where(inside, ratio, jnp.where(d < 0, 1, alpha))
        return jnp.where(positive, large ** (alpha - 1) * ratio, 0)


@dataclasses.dataclass(frozen=True)
class _Logarithm:
    """log(λ + ε)."""

    def value(self, values, epsilon):
        return jnp.log(values + epsilon[..., None])

    def differences(self, values, floor, epsilon):
        epsilon = epsilon[..., None]
        large, small = _pairs(values)
        known = (large > 0) | (epsilon > floor)[..., None]
        # log(1 + d)/(dλ), of λ + ε.
        large, small = large + epsilon[..., None], small + epsilon[..., None]
        d = (small - large) / large
        near = jnp.where((d < 0) & (d > -0.5), d, -0.5)
        far = jnp.where(d > -0.5, 0.5, d)
        apart = (jnp.log(small) - jnp.log(large)) / far
        ratio = jnp.where(d < 0, jnp.where(d > -0.5, jnp.log1p(near) / near, apart), 1)
        return jnp.where(known, ratio / large, 0)


_Function = _Power | _Logarithm


def _power(alpha):
    if not alpha > 0:
        raise UsageError(f"alpha is {alpha!r}: give a power above 0.")
    return _Power(alpha)


def _pairs(values):
    """Of each pair of values, the larger and the smaller."""
    left, right = values[..., :, None], values[..., None, :]
    return jnp.maximum(left, right), jnp.minimum(left, right)


def _matmul(a, b):
    return einsum("...ij,...jk->...ik", a, b)


def _conjugate(vectors, diagonal):
    """U diag(·) Uᵀ."""
    return _matmul(vectors * diagonal[..., None, :], transpose(vectors))


def _without_noise(values, channels):
    """Eigenvalues, those that are rounding error set to zero, and what counts as such, [..., 1]."""
    floor = channels * jnp.finfo(values.dtype).eps * values.max(axis=-1, keepdims=True)
    return jnp.where(values <= floor, 0, values), floor


def _eigen(a):
    values, vectors = jnp.linalg.eigh(a)
    values, floor = _without_noise(values, a.shape[-1])
    return values, vectors, floor


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _of_matrix(f: _Function, a, parameters):
    """f(a), [..., C, C]."""
    values, vectors, _ = _eigen(a)
    return _conjugate(vectors, f.value(values, *parameters))


@_of_matrix.defjvp
def _of_matrix_jvp(f, primals, tangents):
    (a, parameters), (da, _) = primals, tangents
    values, vectors, floor = _eigen(a)
    inner = _matmul(_matmul(transpose(vectors), da), vectors)
    inner = f.differences(values, floor, *parameters) * inner
    y = _conjugate(vectors, f.value(values, *parameters))
    return y, _matmul(_matmul(vectors, inner), transpose(vectors))


def _of_moment(f, x, parameters):
    """f(XᵀX), [B, C, C], of X [B, n, C]."""
    return (_of_gram if x.shape[1] < x.shape[2] else _dense)(f, x, parameters)


def _dense(f, x, parameters):
    return _of_matrix(f, second_moment(x), parameters)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _of_gram(f: _Function, x, parameters):
    values, _, u, _ = _singular(x)
    return _of_singular(f, values, u, parameters)


@_of_gram.defjvp
def _of_gram_jvp(f, primals, tangents):
    """U (δ ∘ WU) Uᵀ + U diag(r) W (I − UUᵀ) + W's transpose likewise, with W = Uᵀ d(XᵀX).

    δᵢⱼ are the divided differences, and r those to the eigenvalue zero.
    """
    (x, parameters), (dx, _) = primals, tangents
    # Once for both passes: two decompositions at a time could wait for each other, as in pade.py.
    values, floor, u, v = _singular(x)
    left = v * jnp.sqrt(jnp.where(values > 0, values, 1))[:, None] * (values > 0)[:, None]  # X U
    w = _matmul(transpose(left), dx)
    inner = _matmul(w, u)
    inner += transpose(inner)
    w += _matmul(transpose(_matmul(dx, u)), _matmul(left, transpose(u)))

    differences = f.differences(jnp.pad(values, ((0, 0), (0, 1))), floor, *parameters)
    to_zero = differences[:, :-1, -1:]
    inner *= 0.5 * differences[:, :-1, :-1] - to_zero
    half = _matmul(u, _matmul(inner, transpose(u)) + to_zero * w)
    return _of_singular(f, values, u, parameters), half + transpose(half)


def _singular(x):
    """λ [B, n], what counts as zero, U [B, C, n] and V [B, n, n] of X = V Λ^½ Uᵀ.

    Columns of U are zero where λ is. The eigenvalues are |Xᵀv|², which is nearer than what the
    decomposition gives for the small ones.
    """
    _, vectors = jnp.linalg.eigh(product(x, x))
    u = einsum("bnc,bnm->bcm", x, vectors)
    values, floor = _without_noise(jnp.sum(u * u, axis=1), x.shape[2])
    kept = values > 0
    roots = jnp.sqrt(jnp.where(kept, values, 1))
    return values, floor, jnp.where(kept, 1 / roots, 0)[:, None] * u, vectors


def _of_singular(f, values, u, parameters):
    """f(0) I + U diag(f(λ) − f(0)) Uᵀ."""
    at_zero = f.value(jnp.zeros_like(values[:, :1]), *parameters)
    identity = jnp.eye(u.shape[1], dtype=u.dtype)
    return at_zero[..., None] * identity + _conjugate(u, f.value(values, *parameters) - at_zero)
