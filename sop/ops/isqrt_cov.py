"""iSQRT-COV: the global covariance pooling of fast MPN-COV."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from sop.ops.annotations import Array, FeatureMap
from sop.ops.arguments import require_feature_map, require_iterations
from sop.ops.covariance import centre, positions, upper_triangle
from sop.ops.derivatives import with_pullback
from sop.ops.matrix_functions import newton_schulz, newton_schulz_and_adjoint, product
from sop.ops.platform import in_halves
from sop.ops.precision import einsum


def isqrt_cov(
    x: FeatureMap, num_iters: int = 5, autodiff: bool = False
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

    Returns:
      [B, C(C+1)/2], row-major as `numpy.triu_indices`, float32 (float64 for float64 x).

    Raises:
      UsageError: x is not a floating [B, H, W, C] with at least one position and one channel, or
        num_iters no positive int.

    >>> import jax.numpy as jnp
    >>> isqrt_cov(jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1)).round(3).tolist()
    [[1.0]]
    """
    require_feature_map(x)
    require_iterations(num_iters)
    return (_forward if autodiff else _isqrt_cov)(x, num_iters)


def _normalized(
    x: FeatureMap,
) -> tuple[Float[jax.Array, "b h*w c"], Float[jax.Array, "b 1 1"]]:
    """Centred positions of Frobenius norm 1, or all zeros, and the norm: X̂ [B, n, C], [B, 1, 1].

    The largest entry is divided out first: squares of 1e-20 or 1e20 would leave float32.
    """
    x = centre(positions(x))
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True))
    x = x / jnp.where(largest > 0, largest, 1)
    squares = jnp.sum(x * x, axis=(1, 2), keepdims=True)
    squares = jnp.where(squares > 0, squares, 1)
    return x * lax.rsqrt(squares), jnp.sqrt(squares) * largest


def _forward(x: FeatureMap, num_iters: int) -> Float[jax.Array, "b c*(c+1)//2"]:
    x, norm = _normalized(x)
    if x.shape[1] < x.shape[2]:
        z = newton_schulz(product(x, x), num_iters, inverse=True)
        y = einsum("bnc,bnd->bcd", x, einsum("bmn,bnc->bmc", z, x))
    else:
        y = newton_schulz(einsum("bnc,bnd->bcd", x, x), num_iters)
    return upper_triangle(y) * (norm / math.sqrt(x.shape[1]))[:, :, 0]


def _isqrt_cov(x, num_iters):
    forward, gradient = (functools.partial(f, num_iters=num_iters) for f in (_forward, _gradient))
    return with_pullback(
        lambda x: in_halves(forward, x),
        lambda x, cotangent: (in_halves(gradient, x, cotangent),),
    )(x)


def _gradient(
    x: FeatureMap, cotangent: Float[Array, "b c*(c+1)//2"], num_iters: int
) -> Float[jax.Array, "b h w c"]:
    shape, dtype = x.shape, x.dtype
    x, _ = _normalized(x)
    g = _from_upper_triangle(cotangent, shape[3])
    if x.shape[1] < x.shape[2]:
        xg = einsum("bnc,bcd->bnd", x, g)
        direction = product(xg, x)
        z, dz = newton_schulz_and_adjoint(product(x, x), direction, num_iters, inverse=True)
        gradient = einsum("bmn,bnc->bmc", z, xg) + einsum("bmn,bnc->bmc", dz, x)
        value = jnp.sum(direction * z, axis=(1, 2), keepdims=True)
    else:
        a = einsum("bnc,bnd->bcd", x, x)
        y, dy = newton_schulz_and_adjoint(a, g, num_iters)
        gradient = einsum("bnc,bcd->bnd", x, dy)
        value = jnp.sum(g * y, axis=(1, 2), keepdims=True)
    # Along x only the norm changes, and the result with it in proportion.
    along = jnp.sum(x * gradient, axis=(1, 2), keepdims=True)
    gradient = (2 * gradient + (value - 2 * along) * x) / math.sqrt(x.shape[1])
    gradient -= gradient.mean(axis=1, keepdims=True)
    return gradient.reshape(shape).astype(dtype)


def _from_upper_triangle(g, channels):
    """The symmetric matrices whose inner product with y is that of g with y's upper triangle."""
    rows, columns = np.triu_indices(channels)
    place = np.zeros((channels, channels), np.int32)
    place[rows, columns] = np.arange(rows.size)
    place = np.maximum(place, place.T)
    share = np.where(np.eye(channels, dtype=bool), 1, 0.5).astype(np.float32)
    return g[:, place.reshape(-1)].reshape(-1, channels, channels) * share
