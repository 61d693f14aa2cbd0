"""Covariance pooling with adaptive channel dropout in the place of a root."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from sop import ops
from sop.layers.eca import channel_conv
from sop.layers.representation import Reduced
from sop.ops.annotations import FeatureMap

_LEAST_KEPT = 1e-6


class DropCov(Reduced):
    """Covariance pooling regularised by dropping channels, at a rate that adapts to them.

    x → optionally ReLU(BN(W x)), a 1×1 convolution without bias to d channels. In training
    x ← x + x·w, w = softmax over channels of k ∗ x̄, k of three taps without bias; then each image
    loses channels at the rate 1 − (10/log₂ d) · mean over the batch of cos(w, Σ1), Σ the
    covariance, cut off to [0, 1], and the others are divided by one minus that rate. The result is
    the upper triangle of the covariance, row by row, without normalisation.
    Wang et al., "DropCov: A Simple yet Effective Method for Improving Deep Architectures", NeurIPS
    2022, §3.3.

    Attributes:
      reduction, initialization, dtype, axis_name: see `sop.layers.representation.Reduced`. The
        rate is a mean over `axis_name`, too.

    Call:
      x: [B, H, W, C] or tokens [B, n, C], any floating dtype; train: whether BN uses and updates
      batch statistics and channels are dropped, drawn from the stream 'dropout'.

    Returns:
      [B, d(d+1)/2], float32.

    Raises:
      UsageError: x is neither, or a field does not fit its annotation.

    >>> x = jnp.ones((2, 4, 4, 32))
    >>> y, _ = DropCov(reduction=8).init_with_output(jax.random.key(0), x, train=False)
    >>> y.shape
    (2, 36)
    """

    torch_names: ClassVar = (
        (r"\brepresentation/reduce\b", "layer_reduce"),
        (r"\brepresentation/reduce_norm\b", "layer_reduce_bn"),
        (r"\brepresentation/conv\b", "eca_layer.conv"),
    )

    @nn.compact
    def represent(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b d"]:
        x = ops.at_least_float32(self.reduced(x, train))
        # Also in evaluation, where initialisation asks for its parameter.
        weights = nn.softmax(channel_conv(3)(x.mean((1, 2))[..., None])[..., 0])
        if train:
            x = x * (1 + weights[:, None, None, :])
        sigma = ops.covariance(x)
        if train:
            kept = 1 - ops.drop_rate(weights, sigma, self.axis_name)
            drawn = jax.random.bernoulli(self.make_rng("dropout"), kept, weights.shape)
            # Of what is kept once in a million times nothing is: its weight has no bound.
            weight = jnp.where(drawn & (kept > _LEAST_KEPT), 1 / jnp.maximum(kept, _LEAST_KEPT), 0)
            # The covariance of dropped channels is the covariance with dropped rows and columns.
            sigma = sigma * (weight[:, :, None] * weight[:, None, :]).astype(sigma.dtype)
        return ops.upper_triangle(sigma)
