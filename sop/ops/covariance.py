"""Second-order statistics of feature maps and the vectors made of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Shaped

from sop.errors import UsageError
from sop.ops.annotations import Array, FeatureMap
from sop.ops.arguments import require_feature_map, require_square
from sop.ops.derivatives import linear
from sop.ops.precision import at_least_float32, einsum, magnitude


def positions(x: FeatureMap) -> Float[Array, "b h*w c"]:
    """[B, H, W, C] → [B, H·W, C] in at least float32."""
    batch, height, width, channels = x.shape
    return at_least_float32(x).reshape(batch, height * width, channels)


def centre(x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
    """Subtracts the mean over positions: [B, n, C] → [B, n, C].

    The first position is subtracted before the mean is taken, so that a constant map gives exact
    zeros whatever the rounding of its mean.
    """
    x = x - lax.stop_gradient(x[:, :1])
    return x - x.mean(axis=1, keepdims=True)


@jax.custom_jvp
def second_moment(x: Float[Array, "b n c"]) -> Float[jax.Array, "b c c"]:
    """Σᵢ xᵢ xᵢᵀ over positions: [B, n, C] → [B, C, C]."""
    return _outer(x, x)


@second_moment.defjvp
def _second_moment_jvp(primals, tangents):
    # The two terms of the product rule are transposes of one another: one multiplication.
    (x,), (dx,) = primals, tangents
    w = _outer(x, dx)
    return second_moment(x), w + jnp.swapaxes(w, 1, 2)


def _outer(x, y):
    return einsum("bnc,bnd->bcd", x, y)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _saturating(product, x):
    """product(x, x) of x [B, n, C]; entries beyond 1e-4 of the type's largest number become that.

    So the next sums over them are in range as well. `product` is bilinear, and transposed where its
    arguments are swapped. The derivative is that of the product itself: x times a cotangent is in
    range where x times x is not.
    """
    size = magnitude(x, (1, 2))
    limit = 1e-4 * float(jnp.finfo(x.dtype).max) / size
    return jnp.clip(product(x / size, x), -limit, limit) * size


@_saturating.defjvp
def _saturating_jvp(product, primals, tangents):
    (x,), (dx,) = primals, tangents
    w = product(x, dx)
    return _saturating(product, x), w + jnp.swapaxes(w, 1, 2)


def _mean_product(x, y):
    return _outer(x, y) / x.shape[1]


def _position_product(x, y):
    m = x.shape[1]
    products = einsum("bmc,bnc->bmn", x, y)
    return products / m - x.sum(axis=2)[:, :, None] * y.sum(axis=2)[:, None, :] / m**2


def covariance(x: FeatureMap) -> Float[jax.Array, "b c c"]:
    """Covariance of the channels over positions, Σ = (1/n) Σᵢ (xᵢ − x̄)(xᵢ − x̄)ᵀ, n = H·W.

    Li et al., "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix
    Square Root Normalization", CVPR 2018, equation (1).

    Args:
      x: features [B, H, W, C], any floating dtype.

    Returns:
      [B, C, C], symmetric, accumulated and returned in float32 (float64 for float64 x); entries
      beyond 1e-4 of its largest number become that.

    Raises:
      UsageError: x is not a floating [B, H, W, C] with at least one position and one channel.

    >>> import jax.numpy as jnp
    >>> covariance(jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1))
    Array([[[1.]]], dtype=float32)
    """
    require_feature_map(x)
    return _saturating(_mean_product, centre(positions(x)))


def scaled_covariance(
    x: FeatureMap,
) -> tuple[Float[jax.Array, "b c c"], Float[jax.Array, "b 1 1"]]:
    """Covariances in range whatever the size of x: (Σ/s², s), s a power of two of at least 1.

    s counts as a constant in gradients, so that of s²·(Σ/s²), or of s·(Σ/s²)^½, is that of Σ.

    Args:
      x: features [B, H, W, C], any floating dtype.

    Returns:
      [B, C, C] and [B, 1, 1], float32 (float64 for float64 x).

    Raises:
      UsageError: x is not a floating [B, H, W, C] with at least one position and one channel.

    >>> import jax.numpy as jnp
    >>> sigma, s = scaled_covariance(jnp.array([-3e30, 3e30]).reshape(1, 2, 1, 1))
    >>> f"{(s * jnp.sqrt(sigma)).item():.0e}"
    '3e+30'
    """
    require_feature_map(x)
    x = centre(positions(x))
    size = magnitude(x, (1, 2))
    return second_moment(x / size) / x.shape[1], size


def position_covariance(x: FeatureMap) -> Float[jax.Array, "b h*w h*w"]:
    """GSoP's covariance of positions over channels, X Î Xᵀ with Î = (1/M) I − (1/M²) 11ᵀ.

    Rows of X are the M = H·W positions. M, not the number of channels, stands in Î: the constants
    of the authors' code, kept for parity.
    Gao et al., "Global Second-order Pooling Convolutional Networks", CVPR 2019, section 3.2.

    Args:
      x: features [B, H, W, C], any floating dtype.

    Returns:
      [B, H·W, H·W], float32 (float64 for float64 x); entries beyond 1e-4 of its largest number
      become that.

    Raises:
      UsageError: x is not a floating [B, H, W, C] with at least one position and one channel.

    >>> import jax.numpy as jnp
    >>> position_covariance(jnp.ones((1, 2, 1, 2)))[0].tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """
    require_feature_map(x)
    return _saturating(_position_product, positions(x))


def row_convolution(
    a: Float[Array, "b r k"], kernel: Float[Array, "r k f"], bias: Float[Array, "r f"]
) -> Float[jax.Array, "b r*f"]:
    """GSoP's row-wise convolution: every row of a matrix meets its own bank of filters.

    out[b, r, f] = Σₖ a[b, r, k] kernel[r, k, f] + bias[r, f], what a grouped convolution with one
    group per row computes. Gao et al., CVPR 2019, section 3.1.

    Args:
      a: matrices [B, R, K].
      kernel: filters [R, K, F].
      bias: [R, F].

    Returns:
      [B, R·F]: the F outputs of row 0, then those of row 1, …

    Raises:
      UsageError: the shapes do not fit together.

    >>> import jax.numpy as jnp
    >>> row_convolution(jnp.eye(2)[None], jnp.ones((2, 2, 1)), jnp.zeros((2, 1))).tolist()
    [[1.0, 1.0]]
    """
    if a.ndim != 3 or kernel.ndim != 3 or a.shape[1:] != kernel.shape[:2]:
        raise UsageError(
            f"kernel has shape {kernel.shape} for matrices of shape {a.shape}: "
            f"give [R, K, F] for matrices [B, R, K]."
        )
    if bias.shape != (kernel.shape[0], kernel.shape[2]):
        raise UsageError(f"bias has shape {bias.shape}: give [R, F] as in kernel {kernel.shape}.")
    out = einsum("brk,rkf->brf", a, kernel) + bias
    return out.reshape(a.shape[0], -1)


def upper_triangle(a: Shaped[Array, "*batch c c"]) -> Shaped[jax.Array, "*batch c*(c+1)//2"]:
    """The upper triangle of square matrices, diagonal included, row by row.

    Args:
      a: [..., C, C].

    Returns:
      [..., C(C+1)/2] in the order of `numpy.triu_indices`, dtype of a.

    Raises:
      UsageError: the last two axes of a differ.

    >>> import jax.numpy as jnp
    >>> upper_triangle(jnp.array([[1, 2], [2, 3]])).tolist()
    [1, 2, 3]
    """
    require_square(a)
    channels = a.shape[-1]
    rows, columns = np.triu_indices(channels)

    def take(_, matrices):
        flat = matrices[0].reshape(*matrices[0].shape[:-2], channels * channels)
        return [flat[..., rows * channels + columns]]

    def put(_, vectors):
        # A gather as well: the scatter that XLA would make of it writes one entry after the other.
        above = np.triu(np.ones((channels, channels), bool))
        return [jnp.where(above, vectors[0][..., _places(channels)], 0)]

    [y] = linear(take, put, [a])
    return y


def from_upper_triangle(
    g: Float[Array, "*batch t"], channels: int
) -> Float[jax.Array, "*batch c c"]:
    """The symmetric matrices S with ⟨S, Y⟩ = ⟨g, upper triangle of Y⟩ for symmetric Y.

    [..., C(C+1)/2] → [..., C, C].
    """
    share = np.where(np.eye(channels, dtype=bool), 1, 0.5).astype(np.float32)
    return g[..., _places(channels)] * share


def _places(channels):
    """[C, C]: where the upper triangle of a symmetric matrix holds its entry (i, j)."""
    rows, columns = np.triu_indices(channels)
    place = np.zeros((channels, channels), np.int32)
    place[rows, columns] = np.arange(rows.size)
    return np.maximum(place, place.T)
