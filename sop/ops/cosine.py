"""Cosines of a feature map: what FcaNet takes in the place of the mean."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sop.ops.annotations import FeatureMap
from sop.ops.arguments import require_feature_map
from sop.ops.precision import at_least_float32


def cosine_basis(length: int, frequencies: np.ndarray) -> np.ndarray:
    """The orthonormal DCT-II basis, √((2 − [f = 0])/L) cos(π f (l + ½)/L): [L, len(frequencies)].

    >>> cosine_basis(2, np.array([0, 1])).round(4).tolist()
    [[0.7071, 0.7071], [0.7071, -0.7071]]
    """
    places = np.arange(length)[:, None] + 0.5
    scale = np.sqrt(np.where(frequencies == 0, 1, 2) / length)
    return scale * np.cos(np.pi * places * frequencies / length)


def cosine_coefficients(
    x: FeatureMap, rows: np.ndarray, columns: np.ndarray
) -> Float[jax.Array, "b c"]:
    """One coefficient of the two-dimensional cosine transform of each channel.

    y[c] = Σ_hw x[h, w, c] A[h, rows[c]] A[w, columns[c]], A the basis of `cosine_basis`.
    Qin et al., "FcaNet: Frequency Channel Attention Networks", ICCV 2021, §3.

    Args:
      x: features [B, H, W, C], any floating dtype.
      rows, columns: int [C], the frequency of each channel along H and along W.

    Returns:
      [B, C], float32 (float64 for float64 x).

    Raises:
      UsageError: x is not a floating [B, H, W, C] with at least one position and one channel.

    >>> zeros = np.zeros(1, int)
    >>> cosine_coefficients(jnp.ones((1, 2, 2, 1)), zeros, zeros).round(3).tolist()
    [[2.0]]
    """
    require_feature_map(x)
    x = at_least_float32(x)
    height = jnp.asarray(cosine_basis(x.shape[1], rows), x.dtype)
    width = jnp.asarray(cosine_basis(x.shape[2], columns), x.dtype)
    # One sum, not products: every channel has its own weights, and XLA would transpose x for these.
    return jnp.sum(x * (height[:, None] * width), axis=(1, 2))
