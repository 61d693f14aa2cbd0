"""Brownian distance covariance pooling."""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from sop import ops
from sop.layers.representation import Reduced
from sop.ops.annotations import FeatureMap


class DeepBDC(Reduced):
    """Brownian distance covariance pooling: distances between channels, doubly centred.

    x → optionally ReLU(BN(W x)), a 1×1 convolution without bias to d channels → distances
    √(exp(t) ‖x_c − x_c'‖² + 1e-5) over the n positions, t learned from log(1/(2n)) → minus the
    means of rows and columns, plus that of all → upper triangle, row by row.
    Xie et al., "Joint Distribution Matters: Deep Brownian Distance Covariance for Few-Shot
    Classification", CVPR 2022, §3.

    Attributes:
      reduction, initialization, dtype, axis_name: see `sop.layers.representation.Reduced`.

    Call:
      x: [B, H, W, C] or tokens [B, n, C], any floating dtype; train: whether BN uses and updates
      batch statistics.

    Returns:
      [B, d(d+1)/2], float32.

    Raises:
      UsageError: x is neither, or a field does not fit its annotation.

    >>> x = jnp.ones((2, 4, 4, 32))
    >>> y, _ = DeepBDC(reduction=8).init_with_output(jax.random.key(0), x, train=False)
    >>> y.shape
    (2, 36)
    """

    torch_names: ClassVar = (
        *Reduced.torch_names,
        (r"\brepresentation/temperature\b", "representation.temperature"),
    )

    @nn.compact
    def represent(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b d"]:
        start = nn.initializers.constant(-math.log(2 * x.shape[1] * x.shape[2]))
        log_scale = self.param("temperature", start, (1, 1), jnp.float32)
        return ops.upper_triangle(ops.brownian_distance_matrix(self.reduced(x, train), log_scale))
