"""The parameter-free attention SimAM."""

import jax
from jaxtyping import Float

from sop.ops.annotations import FeatureMap
from sop.ops.arguments import require_feature_map
from sop.ops.precision import at_least_float32, magnitude


def simam(x: FeatureMap, lam: float = 1e-4) -> Float[jax.Array, "b h w c"]:
    """The gate of SimAM, σ((x − μ)²/(4(σ² + λ)) + ½), of each channel's mean and variance.

    σ² = Σ (x − μ)²/(n − 1) over the n = H·W positions; for n = 1 it is 0.
    Yang et al., "SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural
    Networks", ICML 2021, equation (5) and its appendix.

    Args:
      x: features [B, H, W, C], any floating dtype.
      lam: λ > 0.

    Returns:
      [B, H, W, C] in (½, 1), float32 (float64 for float64 x).

    Raises:
      UsageError: x is not a floating [B, H, W, C] with at least one position and one channel.

    >>> import jax.numpy as jnp
    >>> simam(jnp.ones((1, 2, 2, 1))).ravel()
    Array([0.62245935, 0.62245935, 0.62245935, 0.62245935], dtype=float32)
    """
    require_feature_map(x)
    x = at_least_float32(x)
    n = x.shape[1] * x.shape[2]
    x = x - jax.lax.stop_gradient(x[:, :1, :1])  # so that a constant map gives exact zeros
    d = x - x.mean((1, 2), keepdims=True)
    size = magnitude(d, (1, 2))
    d = d / size
    squares = d * d
    variance = squares.sum((1, 2), keepdims=True) / max(n - 1, 1)
    energy = squares / (4 * (variance + lam / size / size))
    return jax.nn.sigmoid(energy + 0.5)
