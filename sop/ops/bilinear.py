"""Bilinear pooling, full and compact."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from sop.checks import Count, check
from sop.errors import UsageError
from sop.ops.annotations import Array, FeatureMap
from sop.ops.arguments import require_feature_map
from sop.ops.covariance import positions, second_moment
from sop.ops.precision import einsum, magnitude

_THRESHOLD = 1e-8
# Of a sketch by its spectrum: with more the product of frequency and hash would leave 32 bits.
_MOST_ENTRIES = 2**16


def signed_sqrt(
    y: Float[Array, "*shape"], threshold: float | Float[Array, "..."] = _THRESHOLD
) -> Float[jax.Array, "*shape"]:
    """sign(y)·√(|y| + ε) with ε = 1e-8, with gradient zero at zero; dtype of y.

    >>> import jax.numpy as jnp
    >>> signed_sqrt(jnp.array([-4.0, 0.0, 9.0])).tolist()
    [-2.0, 0.0, 3.0]
    """
    return jnp.sign(y) * jnp.sqrt(jnp.abs(y) + threshold)


def l2_normalize(y: Float[Array, "*shape"], axis: int = -1) -> Float[jax.Array, "*shape"]:
    """y / max(‖y‖₂, 1e-12) along an axis, finite with its gradient at zero; dtype of y.

    >>> import jax.numpy as jnp
    >>> l2_normalize(jnp.array([3.0, 4.0]))
    Array([0.6, 0.8], dtype=float32)
    """
    return y / jnp.sqrt(jnp.maximum(jnp.sum(y * y, axis=axis, keepdims=True), 1e-24))


def bilinear(
    x: FeatureMap, vectorize: bool = True
) -> Float[jax.Array, "b c*c"] | Float[jax.Array, "b c c"]:
    """Bilinear pooling of B-CNN: Y = (1/n) Σᵢ xᵢ xᵢᵀ, signed square root, ℓ₂-normalised.

    The mean of outer products is not centred; the root is sign(Y)·√(|Y| + 1e-8) elementwise.
    Lin, RoyChowdhury and Maji, "Bilinear CNN Models for Fine-grained Visual Recognition", ICCV
    2015, section 3.1.

    Args:
      x: features [B, H, W, C], any floating dtype.
      vectorize: False keeps the matrix, whose columns are normalised instead, as the original's
        option does.

    Returns:
      [B, C²], or [B, C, C] without `vectorize`, float32 (float64 for float64 x).

    Raises:
      UsageError: x is not a floating [B, H, W, C] with at least one position and one channel.

    >>> import jax.numpy as jnp
    >>> bilinear(jnp.ones((1, 3, 3, 2))).tolist()
    [[0.5, 0.5, 0.5, 0.5]]
    """
    require_feature_map(x)
    x, threshold = _in_range(positions(x))
    y = second_moment(x) / x.shape[1]
    y = signed_sqrt(y, threshold)
    return l2_normalize(y.reshape(y.shape[0], -1) if vectorize else y, axis=1)


def _in_range(x):
    """x over a power of two, so that its squares are in range, and the ε that goes with them.

    The power cancels in the norm: result and gradient are those of x, to the bit.
    """
    size = magnitude(x, (1, 2))
    inverse = 1 / size
    threshold = jnp.maximum(_THRESHOLD * inverse * inverse, jnp.finfo(x.dtype).tiny)
    return x / size, threshold


def tensor_sketch_hashes(
    seed: int, channels: int, projected_dim: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The two random count sketches of compact bilinear pooling, a function of the seed alone.

    Args:
      seed: int ≥ 0.
      channels: C.
      projected_dim: D.

    Returns:
      (hash_1, sign_1, hash_2, sign_2): int32 [C] in [0, D), float32 [C] of ±1, and the same again;
      NumPy arrays.

    >>> hash_1, sign_1, hash_2, sign_2 = tensor_sketch_hashes(0, channels=3, projected_dim=8)
    >>> hash_1.shape, set(sign_1.tolist()) <= {-1.0, 1.0}
    ((3,), True)
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    signs = np.array([-1, 1], np.float32)
    hash_1 = generator.integers(0, projected_dim, channels).astype(np.int32)
    sign_1 = generator.choice(signs, channels)
    hash_2 = generator.integers(0, projected_dim, channels).astype(np.int32)
    sign_2 = generator.choice(signs, channels)
    return hash_1, sign_1, hash_2, sign_2


def compact_bilinear(
    x: FeatureMap,
    hash_1: Int[Array, " c"],
    sign_1: Float[Array, " c"],
    hash_2: Int[Array, " c"],
    sign_2: Float[Array, " c"],
    projected_dim: int = 8192,
) -> Float[jax.Array, "b {projected_dim}"]:
    """Compact bilinear pooling by tensor sketch, signed square root, ℓ₂-normalised.

    With the count sketches ψ(x, h, s)[k] = Σ_{c: h[c]=k} s[c] x[c], every position gives the
    circular convolution of ψ(x, hash_1, sign_1) and ψ(x, hash_2, sign_2); they are summed: on CPU,
    and where 4 n D > C² for n positions, as entries of XᵀX, else by Fourier transforms.
    Gao, Beijbom, Zhang and Darrell, "Compact Bilinear Pooling", CVPR 2016, algorithm 2.

    Args:
      x: features [B, H, W, C], any floating dtype.
      hash_1, hash_2: int [C] in [0, projected_dim).
      sign_1, sign_2: [C] of ±1.
      projected_dim: D.

    Returns:
      [B, D], float32 (float64 for float64 x).

    Raises:
      UsageError: x is not a floating [B, H, W, C] with at least one position and one channel, a
        hash or sign is not [C], or projected_dim no positive int.

    >>> import jax.numpy as jnp
    >>> compact_bilinear(jnp.ones((1, 2, 2, 1)), *tensor_sketch_hashes(0, 1, 4), 4).shape
    (1, 4)
    """
    require_feature_map(x)
    check("projected_dim", projected_dim, Count)
    channels = x.shape[3]
    for name, value in (
        ("hash_1", hash_1),
        ("sign_1", sign_1),
        ("hash_2", hash_2),
        ("sign_2", sign_2),
    ):
        if value.shape != (channels,):
            raise UsageError(
                f"{name} has shape {value.shape}: give one entry per channel of x, [{channels}]."
            )
    x, threshold = _in_range(positions(x))
    by_products = functools.partial(_sketch_by_products, size=projected_dim)
    by_spectra = functools.partial(_sketch_by_spectra, size=projected_dim)
    # Adding up C² products one by one is what accelerators are worst at. The transform costs n D.
    transforms = 4 * x.shape[1] * projected_dim <= channels**2 and projected_dim <= _MOST_ENTRIES
    y = lax.platform_dependent(
        x,
        *(jnp.asarray(each) for each in (hash_1, sign_1, hash_2, sign_2)),
        cpu=by_products,
        default=by_spectra if transforms else by_products,
    )
    return l2_normalize(signed_sqrt(y, threshold[:, 0]))


def _sketch_by_products(x, hash_1, sign_1, hash_2, sign_2, size):
    """Σ over positions of the convolved sketches of x [B, n, C]: [B, D].

    It is linear in the outer product: entry (c, d) of XᵀX goes to hash_1[c] + hash_2[d].
    """
    y = second_moment(x)
    y = y * sign_1[:, None] * sign_2[None, :]
    target = (hash_1[:, None] + hash_2[None, :]) % size
    return (
        jnp.zeros((x.shape[0], size), y.dtype)
        .at[:, target.reshape(-1)]
        .add(y.reshape(x.shape[0], -1))
    )


def _sketch_by_spectra(x, hash_1, sign_1, hash_2, sign_2, size):
    """The same by the convolution theorem.

    Entries below rounding error are 0, as they are by products where no product falls.
    """
    real_1, imaginary_1 = _spectrum(x, hash_1, sign_1, size)
    real_2, imaginary_2 = _spectrum(x, hash_2, sign_2, size)
    real = jnp.sum(real_1 * real_2 - imaginary_1 * imaginary_2, 1)
    imaginary = jnp.sum(real_1 * imaginary_2 + imaginary_1 * real_2, 1)
    y = jnp.fft.irfft(lax.complex(real, imaginary), size)
    # The root to come would make 3e-4 of it.
    noise = jnp.finfo(x.dtype).eps * jnp.sum(x * x, (1, 2))
    return jnp.where(jnp.abs(y) > noise[:, None], y, 0)


def _spectrum(x, hashes, signs, size):
    """Fourier transforms of the sketches of x [B, n, C], real and imaginary: [B, n, D/2 + 1].

    As products with s[c] exp(−2πi f h[c]/D), which are the same for all positions: the sketch,
    D entries of each, is not made.
    """
    frequencies = jnp.arange(size // 2 + 1, dtype=jnp.uint32)
    turns = hashes.astype(jnp.uint32)[:, None] * frequencies % size
    # From −½ to ½ of a turn, where the angle has one digit more.
    turns = turns.astype(x.dtype)
    angle = jnp.where(turns > size / 2, turns - size, turns) * (-2 * math.pi / size)
    wave = signs[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    return einsum("bnc,pcf->pbnf", x, wave.astype(x.dtype))
