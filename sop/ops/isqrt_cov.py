"""iSQRT-COV, the global covariance pooling of fast MPN-COV, and its like for Gaussians."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from sop.ops.annotations import FeatureMap
from sop.ops.arguments import require_feature_map, require_iterations, require_precision
from sop.ops.covariance import centre, from_upper_triangle, positions, upper_triangle
from sop.ops.derivatives import with_pullback
from sop.ops.matrix_functions import newton_schulz, newton_schulz_and_adjoint, product
from sop.ops.platform import in_halves
from sop.ops.precision import Precision, einsum


def isqrt_cov(
    x: FeatureMap, num_iters: int = 5, autodiff: bool = False, precision: Precision = "highest"
) -> Float[jax.Array, "b c*(c+1)//2"]:
    """Upper triangle of the square root of the covariance, by N Newton–Schulz iterations.

    `upper_triangle(matrix_sqrt(covariance(x), num_iters))`, also where the covariance itself would
    leave the range of float32. With fewer positions than channels all iterations run on the
    n × n Gram matrix: for centred X, f(XᵀX) = Xᵀ q(XXᵀ) X where f(A) = A q(A) as polynomials.
    Where the covariance is zero, result and gradient are zero.
    Li et al., "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix
    Square Root Normalization", CVPR 2018, section 3.

    Args:
      x: features [B, H, W, C], any floating dtype.
      num_iters: N ≥ 1; 5 in fast MPN-COV, 3 in GSoP-Net2.
      autodiff: differentiate the iteration itself, most of whose products are then kept, instead
        of the hand-derived backward pass, which keeps x alone. The gradients are equal.
      precision: of products of float32 on accelerators, 'highest', 'high' or 'default'; their
        errors are in docs/accelerators.md.

    Returns:
      [B, C(C+1)/2], row-major as `numpy.triu_indices`, float32 (float64 for float64 x).

    Raises:
      UsageError: x is not a floating [B, H, W, C] with at least one position and one channel,
        num_iters no positive int, or precision unknown.

    >>> import jax.numpy as jnp
    >>> isqrt_cov(jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1)).round(3).tolist()
    [[1.0]]
    """
    return _root_of_moment(x, _centred, num_iters, autodiff, precision)


def isqrt_gaussian(
    x: FeatureMap,
    num_iters: int = 5,
    beta: float = 1.0,
    autodiff: bool = False,
    precision: Precision = "highest",
) -> Float[jax.Array, "b _"]:
    """Upper triangle of the square root of a Gaussian's embedding, by N Newton–Schulz iterations.

    The Gaussian of mean μ and covariance Σ over positions is embedded as the matrix
    [[Σ + β²μμᵀ, βμ], [βμᵀ, 1]], the second moment of the positions xᵢ − (1 − β)μ with a one
    appended. So all that is said of `isqrt_cov` holds here: Gram matrix, backward pass, range.
    Wang et al., "Deep CNNs Meet Global Covariance Pooling: Better Representation and
    Generalization", TPAMI 2021 (arXiv 1904.06836); Wang, Li and Zhang, "G²DeNet: Global Gaussian
    Distribution Embedding Network and Its Application to Visual Recognition", CVPR 2017, §3.

    Args:
      x: features [B, H, W, C], any floating dtype.
      num_iters: N ≥ 1.
      beta: β, the weight of the mean.
      autodiff: see `isqrt_cov`.
      precision: see `isqrt_cov`.

    Returns:
      [B, (C+1)(C+2)/2], row-major as `numpy.triu_indices`, float32 (float64 for float64 x).

    Raises:
      UsageError: as `isqrt_cov`.

    >>> import jax.numpy as jnp
    >>> isqrt_gaussian(jnp.array([-1.0, 1.0]).reshape(1, 2, 1, 1), 12).round(3).tolist()
    [[1.0, 0.0, 1.0]]
    """
    prepare = functools.partial(_with_mean, beta=beta)
    return _root_of_moment(x, prepare, num_iters, autodiff, precision)


def _centred(x):
    return centre(positions(x))


def _with_mean(x, beta):
    x = positions(x)
    x = x if beta == 1 else x - (1 - beta) * x.mean(axis=1, keepdims=True)
    return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=2)


def _root_of_moment(x, prepare, num_iters, autodiff, precision):
    """Of (1/n) Σ rᵢ rᵢᵀ, where `prepare` makes the rows rᵢ [B, n, D] of x."""
    require_feature_map(x)
    require_iterations(num_iters)
    require_precision(precision)
    how = {"prepare": prepare, "num_iters": num_iters, "precision": precision}
    forward, gradient = (functools.partial(f, **how) for f in (_forward, _gradient))
    if autodiff:
        return forward(x)
    return with_pullback(
        lambda x: in_halves(forward, x),
        lambda x, cotangent: (in_halves(gradient, x, cotangent),),
    )(x)


def _normalized(x):
    """Rows of Frobenius norm 1, or all zeros, and the norm: X̂ [B, n, D], [B, 1, 1].

    The largest entry is divided out first: squares of 1e-20 or 1e20 would leave float32.
    """
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True))
    x = x / jnp.where(largest > 0, largest, 1)
    squares = jnp.sum(x * x, axis=(1, 2), keepdims=True)
    squares = jnp.where(squares > 0, squares, 1)
    return x * lax.rsqrt(squares), jnp.sqrt(squares) * largest


def _forward(x, prepare, num_iters, precision):
    multiply = functools.partial(einsum, precision=precision)
    x, norm = _normalized(prepare(x))
    if x.shape[1] < x.shape[2]:
        gram = product(x, x, precision)
        z = newton_schulz(gram, num_iters, inverse=True, precision=precision)
        y = multiply("bnc,bnd->bcd", x, multiply("bmn,bnc->bmc", z, x))
    else:
        y = newton_schulz(multiply("bnc,bnd->bcd", x, x), num_iters, precision=precision)
    return upper_triangle(y) * (norm / math.sqrt(x.shape[1]))[:, :, 0]


def _gradient(x, cotangent, prepare, num_iters, precision):
    multiply = functools.partial(einsum, precision=precision)
    iterate = functools.partial(newton_schulz_and_adjoint, num_iters=num_iters, precision=precision)
    rows, pullback = jax.vjp(prepare, x)
    x, _ = _normalized(rows)
    g = from_upper_triangle(cotangent, x.shape[2])
    if x.shape[1] < x.shape[2]:
        xg = multiply("bnc,bcd->bnd", x, g)
        direction = product(xg, x, precision)
        z, dz = iterate(product(x, x, precision), direction, inverse=True)
        gradient = multiply("bmn,bnc->bmc", z, xg) + multiply("bmn,bnc->bmc", dz, x)
        value = jnp.sum(direction * z, axis=(1, 2), keepdims=True)
    else:
        y, dy = iterate(multiply("bnc,bnd->bcd", x, x), g)
        gradient = multiply("bnc,bcd->bnd", x, dy)
        value = jnp.sum(g * y, axis=(1, 2), keepdims=True)
    # Along x only the norm changes, and the result with it in proportion.
    along = jnp.sum(x * gradient, axis=(1, 2), keepdims=True)
    gradient = (2 * gradient + (value - 2 * along) * x) / math.sqrt(x.shape[1])
    return pullback(gradient)[0]
