"""Style-based recalibration."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from sop import ops
from sop.layers.gate import Gate, Gates
from sop.layers.norm import BatchNorm
from sop.layers.published import Published
from sop.ops.annotations import FeatureMap


class SRM(Gate):
    """Style-based recalibration: y = x · σ(BN(w₁ μ + w₂ s)), each channel by itself.

    μ and s are mean and standard deviation over positions (divided by n − 1; 0 for n = 1). The
    weights start as zeros.
    Lee, Kim and Nam, "SRM: A Style-based Recalibration Module for Convolutional Neural Networks",
    ICCV 2019, §3.

    Attributes:
      dtype: of y; None: that of x. Gates are at least float32.
      axis_name: mapped axis that BN statistics are averaged over.

    Call:
      x: [B, H, W, C], any floating dtype; train: whether BN uses and updates batch statistics.

    Returns:
      [B, H, W, C] in `dtype`.

    Raises:
      UsageError: x is no feature map, or a field does not fit its annotation.

    >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    >>> y, _ = SRM().init_with_output(jax.random.key(1), x, train=False)
    >>> bool(jnp.all(y == x / 2))
    True
    """

    published: ClassVar = Published(after="branch")
    torch_names: ClassVar = ((r"\battention/norm\b", "attention.bn"),)

    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def gate(self, x: FeatureMap, train: bool) -> Gates:
        weights = self.param("cfc", nn.initializers.zeros, (x.shape[-1], 2))
        mean, deviation = _mean_and_deviation(x)
        z = mean * weights[:, 0] + deviation * weights[:, 1]
        z = BatchNorm(axis_name=self.axis_name, name="norm")(z, train)
        return nn.sigmoid(z)[:, None, None, :]


def _mean_and_deviation(x):
    """[B, H, W, C] → [B, C] twice; the gradient of a deviation of 0 is 0."""
    n = x.shape[1] * x.shape[2]
    mean = x.mean((1, 2))
    x = x - jax.lax.stop_gradient(x[:, :1, :1])  # so that a constant map gives exact zeros
    d = x - x.mean((1, 2), keepdims=True)
    size = ops.magnitude(d, (1, 2))
    variance = jnp.square(d / size).sum((1, 2)) / max(n - 1, 1)
    some = variance > 0
    root = jnp.where(some, jnp.sqrt(jnp.where(some, variance, 1)), variance)
    return mean, size[:, 0, 0] * root
