"""Efficient channel attention."""

import math
from typing import Annotated, Any, ClassVar

import flax.linen as nn
from jax import lax

from sop.checks import Condition, Count
from sop.layers.gate import Gate, Gates
from sop.layers.linear import torch_uniform
from sop.layers.published import Published
from sop.ops.annotations import FeatureMap

_Odd = Annotated[Count, Condition(lambda value: value % 2 == 1, "that is odd")]


def kernel_size(channels: int) -> int:
    """k = |log₂ C/γ + b/γ|, γ = 2 and b = 1, cut off and made odd by adding one if need be.

    >>> [kernel_size(channels) for channels in (16, 64, 256, 2048)]
    [3, 3, 5, 7]
    """
    size = int((math.log2(channels) + 1) / 2)
    return size | 1


def channel_conv(size: int) -> nn.Conv:
    """The convolution of the channels as a sequence, [B, C, 1] → [B, C, 1], with `size` taps."""
    return nn.Conv(
        1,
        (size,),
        use_bias=False,
        kernel_init=torch_uniform(size),
        precision=lax.Precision.HIGHEST,
        name="conv",
    )


class ECA(Gate):
    """Efficient channel attention: y = x · σ(w ∗ x̄), a convolution of the channels' means.

    w has k taps, the same for all channels, and no bias; x̄ is zero beyond its ends.
    Wang et al., "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks",
    CVPR 2020, §3.

    Attributes:
      size: k; None: `kernel_size(C)`.
      dtype: of y; None: that of x. Gates are at least float32.

    Call:
      x: [B, H, W, C], any floating dtype; train: without effect.

    Returns:
      [B, H, W, C] in `dtype`.

    Raises:
      UsageError: x is no feature map, or a field does not fit its annotation.

    >>> import jax
    >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 32))
    >>> y, variables = ECA().init_with_output(jax.random.key(1), x, train=False)
    >>> y.shape, sum(w.size for w in jax.tree.leaves(variables))
    ((2, 4, 4, 32), 3)
    """

    published: ClassVar = Published(after="branch")
    torch_names: ClassVar = ((r"\battention/conv\b", "se.conv"),)

    size: _Odd | None = None
    dtype: Any = None

    @nn.compact
    def gate(self, x: FeatureMap, train: bool) -> Gates:
        size = self.size or kernel_size(x.shape[-1])
        y = channel_conv(size)(x.mean((1, 2))[..., None])
        return nn.sigmoid(y[:, None, None, :, 0])
