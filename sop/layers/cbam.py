"""Convolutional block attention."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from sop.checks import Count
from sop.layers.gate import Gate, Gates
from sop.layers.linear import dense, torch_uniform
from sop.layers.norm import BatchNorm
from sop.layers.published import Published
from sop.ops.annotations import FeatureMap

_WINDOW = 7


class CBAM(Gate):
    """Convolutional block attention module: a gate for each channel, then one for each position.

    c = σ(MLP(mean of x over positions) + MLP(maximum)), MLP(v) = W₂ ReLU(W₁ v + b₁) + b₂;
    p = σ(BN(K ∗ [maximum of x·c over channels, mean])), K 7×7; y = x · c · p.
    Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, §3.

    Attributes:
      reduction: r of W₁: C → C/r, at least 1.
      dtype: of y; None: that of x. Gates are at least float32.
      axis_name: mapped axis that BN statistics are averaged over.

    Call:
      x: [B, H, W, C], any floating dtype; train: whether BN uses and updates batch statistics.

    Returns:
      [B, H, W, C] in `dtype`.

    Raises:
      UsageError: x is no feature map, or a field does not fit its annotation.

    >>> import jax
    >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 32))
    >>> y, _ = CBAM().init_with_output(jax.random.key(1), x, train=False)
    >>> y.shape
    (2, 4, 4, 32)
    """

    published: ClassVar = Published(after="branch")
    torch_names: ClassVar = (
        (r"\battention/reduce\b", "cbam.ChannelGate.mlp.1"),
        (r"\battention/expand\b", "cbam.ChannelGate.mlp.3"),
        (r"\battention/conv\b", "cbam.SpatialGate.spatial.conv"),
        (r"\battention/norm\b", "cbam.SpatialGate.spatial.bn"),
    )

    reduction: Count = 16
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def gate(self, x: FeatureMap, train: bool) -> Gates:
        channels = self._channels(x)
        x = x * channels
        y = jnp.concatenate([x.max(3, keepdims=True), x.mean(3, keepdims=True)], axis=3)
        margin = _WINDOW // 2
        y = nn.Conv(
            1,
            (_WINDOW, _WINDOW),
            padding=margin,
            use_bias=False,
            kernel_init=torch_uniform(2 * _WINDOW**2),
            precision=lax.Precision.HIGHEST,
            name="conv",
        )(y)
        y = BatchNorm(momentum=0.01, axis_name=self.axis_name, name="norm")(y, train)
        return channels * nn.sigmoid(y)

    def _channels(self, x: FeatureMap) -> Gates:
        width = x.shape[-1]
        inner = max(1, width // self.reduction)
        reduce, expand = dense(inner, width, name="reduce"), dense(width, inner, name="expand")
        mean, maximum = (expand(nn.relu(reduce(each))) for each in (x.mean((1, 2)), x.max((1, 2))))
        return nn.sigmoid(mean + maximum)[:, None, None, :]
