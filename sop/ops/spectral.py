"""Functions of symmetric positive semi-definite matrices by eigendecomposition.

The derivative of f(A) in the eigenbasis of A meets the divided differences
(f(λᵢ) − f(λⱼ))/(λᵢ − λⱼ), entry by entry (Daleckii and Krein); those of equal eigenvalues are their
limit f'(λ). Of XᵀX with fewer rows than columns, f is f(0) I + Xᵀ h(XXᵀ) X with
h(λ) = (f(λ) − f(0))/λ, which takes the eigenvectors of the smaller XXᵀ alone.

A function is a class of `value` and `quotient`, λ ≥ 0 [..., n] → f(λ) and h(λ), and of the divided
differences of both, [..., n, n]. All get parameters [...], which are constants, and most `floor`
[..., 1]: what is below it is rounding error. Derivatives of derivatives are right where eigenvalues
are distinct.
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
    Gram matrix, XXᵀ = VΛVᵀ: Σ^α = XᵀV Λ^(α−1) VᵀX for centred X/√n.

    Args:
      x: features [B, H, W, C], any floating dtype.
      alpha: the power, a number above 0.

    Returns:
      [B, C, C], float32 (float64 for float64 x); entries that would leave its range become its
      largest number, or less.

    Raises:
      UsageError: x is not a floating [B, H, W, C] with at least one position and one channel, or
        alpha is not positive.

    >>> import jax.numpy as jnp
    >>> power_cov(jnp.array([1.0, 5.0]).reshape(1, 2, 1, 1), 0.5).round(3).tolist()
    [[[2.0]]]
    """
    f = _power(alpha)
    x, size = _scaled(x, least=2.0**-100)
    power = _of_moment(f, x, ())
    if alpha <= 0.5:
        return size ** (2 * alpha) * power
    # Not infinite, since that times a constant channel's zero is NaN.
    largest = float(jnp.finfo(x.dtype).max)
    return jnp.clip(jnp.minimum(size ** (2 * alpha), largest / 2) * power, -largest, largest)


def log_cov(x: FeatureMap, epsilon: float = 1e-3) -> Float[jax.Array, "b c c"]:
    """`matrix_log(covariance(x), epsilon)`, also where the covariance would leave float32's range.

    On the Gram matrix as `power_cov`: log(Σ + εI) = log ε · I + XᵀV Λ⁻¹ log(I + Λ/ε) VᵀX.

    Args:
      x: features [B, H, W, C], any floating dtype.
      epsilon: ε > 0. For features of a size s above 1e17, ε counts as at least 1e-37 s².

    Returns:
      [B, C, C], float32 (float64 for float64 x).

    Raises:
      UsageError: x is not a floating [B, H, W, C] with at least one position and one channel.

    >>> import jax.numpy as jnp
    >>> log_cov(jnp.array([1.0, 5.0]).reshape(1, 2, 1, 1), 1e-9).round(3).tolist()
    [[[1.3860000371932983]]]
    """
    x, size = _scaled(x, least=1.0)
    scaled = jnp.maximum(epsilon / size / size, 1e-37)[:, 0, 0]
    shift = 2 * jnp.log(size) * jnp.eye(x.shape[2], dtype=x.dtype)
    return _of_moment(_Logarithm(), x, (scaled,)) + shift


def _scaled(x, least):
    """Centred positions X [B, n, C] with Σ = s² XᵀX, and s, a power of two of at least `least`."""
    require_feature_map(x)
    x = centre(positions(x))
    size = magnitude(x, (1, 2), least)
    return x / size / math.sqrt(x.shape[1]), size


@dataclasses.dataclass(frozen=True)
class _Power:
    """λ^α."""

    alpha: float

    def value(self, values):
        return _to_the(values, self.alpha)

    def differences(self, values, floor):
        return _differences_of_powers(values, self.alpha)

    def quotient(self, values, floor):
        return _to_the(self._known(values, floor), self.alpha - 1)

    def quotient_differences(self, values, floor):
        return _differences_of_powers(self._known(values, floor), self.alpha - 1)

    def _known(self, values, floor):
        """For α < 1 h is unbounded at zero: there rounding errors count as zero."""
        return jnp.where(values <= floor, 0, values) if self.alpha < 1 else values


def _to_the(values, exponent):
    """λ^e, and 0 for λ = 0 if e is not 0."""
    if exponent == 0:
        return jnp.ones_like(values)
    return jnp.where(values == 0, 0, jnp.where(values == 0, 1, values) ** exponent)


def _differences_of_powers(values, exponent):
    """[..., n, n]. With λ the larger and 1 + d ≤ 1 the ratio of the two, λ^(e−1) ((1 + d)^e − 1)/d.

    Of pairs with a zero, 0 where e ≤ 0, and of pairs of zeros always.
    """
    large, small = _pairs(values)
    counts = large > 0 if exponent > 0 else small > 0
    large = jnp.where(counts, large, 1)
    d = (small - large) / large
    inside = (d < 0) & (d > -1)
    safe = jnp.where(inside, d, -0.5)
    ratio = jnp.expm1(exponent * jnp.log1p(safe)) / safe
    ratio = jnp.where(inside, ratio, jnp.where(d < 0, 1, exponent))
    return jnp.where(counts, large ** (exponent - 1) * ratio, 0)


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

    def quotient(self, values, floor, epsilon):
        """φ(λ/ε)/ε, φ(t) = log(1 + t)/t."""
        epsilon = epsilon[..., None]
        return jnp.where(self._known(values, floor, epsilon), _phi(values / epsilon) / epsilon, 0)

    def quotient_differences(self, values, floor, epsilon):
        """With L ≥ S of λ/ε and D = (L − S)/(1 + S), (φ(D)/(1 + S) − φ(S))/(Lε²).

        Where L is small, that is a series, Σₖ (−1)ᵏ/(k + 1) · (Lᵏ − Sᵏ)/(L − S).
        """
        epsilon = epsilon[..., None]
        known = self._known(values, floor, epsilon)
        known = known[..., :, None] & known[..., None, :]
        large, small = (each / epsilon[..., None] for each in _pairs(values))
        near = large < 1 / 16
        short, shorter = jnp.where(near, large, 0), jnp.where(near, small, 0)
        series, terms, power = jnp.zeros_like(short), jnp.ones_like(short), shorter
        for k in range(1, 14):
            series = series + (-1) ** k / (k + 1) * terms
            terms, power = short * terms + power, shorter * power
        long = jnp.where(near, 1, large)
        apart = (_phi((large - small) / (1 + small)) / (1 + small) - _phi(small)) / long
        inverse = jnp.where(known, 1 / epsilon[..., None], 0)
        return jnp.where(near, series, apart) * inverse * inverse

    def _known(self, values, floor, epsilon):
        return (values > floor) | (epsilon > floor)


def _phi(t):
    """log(1 + t)/t, 1 at zero."""
    positive = t > 0
    safe = jnp.where(positive, t, 1)
    return jnp.where(positive, jnp.log1p(safe) / safe, 1)


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


def _floor(values, channels):
    """The largest eigenvalue that is rounding error, [..., 1]."""
    return channels * jnp.finfo(values.dtype).eps * values.max(axis=-1, keepdims=True)


def _eigen(a):
    """λ with rounding errors set to zero, eigenvectors, and up to where λ is rounding error."""
    values, vectors = jnp.linalg.eigh(a)
    floor = _floor(values, a.shape[-1])
    return jnp.where(values <= floor, 0, values), vectors, floor


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
    values, floor, _, y = _singular(x)
    return _from_quotient(f, y, f.quotient(values, floor, *parameters), parameters)


@_of_gram.defjvp
def _of_gram_jvp(f, primals, tangents):
    """(A h + Y (δ ∘ (AᵀY)ₛ)) Yᵀ and its transpose, with A = dXᵀV and the differences δ of h."""
    (x, parameters), (dx, _) = primals, tangents
    # Once for both passes: two decompositions at a time could wait for each other, as in pade.py.
    values, floor, v, y = _singular(x)
    quotient = f.quotient(values, floor, *parameters)
    differences = f.quotient_differences(values, floor, *parameters)
    a = _matmul(transpose(dx), v)
    inner = differences * symmetrize(_matmul(transpose(a), y))
    half = _matmul(a * quotient[:, None] + _matmul(y, inner), transpose(y))
    return _from_quotient(f, y, quotient, parameters), half + transpose(half)


def _singular(x):
    """λ [B, n], what of them is rounding error, V [B, n, n] and Y = XᵀV [B, C, n] of XXᵀ = VΛVᵀ.

    The eigenvalues are |Xᵀv|², which is nearer than what the decomposition gives for small ones.
    """
    _, v = jnp.linalg.eigh(product(x, x))
    y = einsum("bnc,bnm->bcm", x, v)
    values = jnp.sum(y * y, axis=1)
    return values, _floor(values, x.shape[2]), v, y


def _from_quotient(f, y, quotient, parameters):
    """f(0) I + Y diag(h) Yᵀ."""
    at_zero = f.value(jnp.zeros_like(quotient[:, :1]), *parameters)
    return at_zero[..., None] * jnp.eye(y.shape[1], dtype=y.dtype) + _conjugate(y, quotient)
