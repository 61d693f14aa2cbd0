"""Brownian distance covariance of channels."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from sop.ops.annotations import Array, FeatureMap
from sop.ops.arguments import require_feature_map
from sop.ops.covariance import centre, positions, second_moment
from sop.ops.precision import magnitude

_THRESHOLD = 1e-5
_ROUNDING = 1e-12  # of squared distances over the largest of them


def brownian_distance_matrix(
    x: FeatureMap, log_scale: Float[Array, "..."] | float = 0.0
) -> Float[jax.Array, "b c c"]:
    """Doubly centred distances between channels, the matrix of Brownian distance covariance.

    d[c, c'] = √(exp(t) ‖x_c − x_c'‖² + 1e-5) over positions, then minus the means of its row and
    of its column plus the mean of all.
    Xie et al., "Joint Distribution Matters: Deep Brownian Distance Covariance for Few-Shot
    Classification", CVPR 2022, section 3.2.

    Args:
      x: features [B, H, W, C], any floating dtype.
      log_scale: t, a number or an array of one.

    Returns:
      [B, C, C], symmetric, with rows that sum to zero; float32 (float64 for float64 x).

    Raises:
      UsageError: x is not a floating [B, H, W, C] with at least one position and one channel.

    >>> brownian_distance_matrix(jnp.array([0.0, 4.0]).reshape(1, 1, 1, 2)).round(2).tolist()
    [[[-2.0, 2.0], [2.0, -2.0]]]
    """
    require_feature_map(x)
    # What all channels share at a position is in no distance.
    x = centre(jnp.swapaxes(positions(x), 1, 2))
    size = magnitude(x, (1, 2))
    products = second_moment(jnp.swapaxes(x / size, 1, 2))
    squares = jnp.diagonal(products, axis1=1, axis2=2)
    distances = jnp.maximum(squares[:, :, None] + squares[:, None, :] - 2 * products, 0)
    # The distance to itself is 0 for every x; its gradient would be a difference of large numbers.
    identity = jnp.eye(distances.shape[1], dtype=bool)
    distances = jnp.where(identity, lax.stop_gradient(distances), distances)
    scale = jnp.exp(jnp.asarray(log_scale, distances.dtype)).reshape(())
    threshold = jnp.maximum(_THRESHOLD / size / size, _ROUNDING)
    distances = size * jnp.sqrt(scale * distances + threshold)
    means = distances.mean(axis=2, keepdims=True)
    return distances - means - jnp.swapaxes(means, 1, 2) + means.mean(axis=1, keepdims=True)
