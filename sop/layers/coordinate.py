"""Coordinate attention."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from sop.checks import Count
from sop.layers.gate import Gate, Gates
from sop.layers.linear import PointwiseConv
from sop.layers.norm import BatchNorm
from sop.layers.published import Published
from sop.ops.annotations import FeatureMap


class CoordinateAttention(Gate):
    """Coordinate attention: a gate for each row and one for each column of every channel.

    Means over columns, [B, H, C], and over rows, [B, W, C], pass together through
    hswish(BN(W₁ · + b₁)), C → max(8, C/r), and then through σ(W₂ · + b₂) each with its own W₂;
    y[h, w] = x[h, w] · g_row[h] · g_column[w].
    Hou, Zhou and Feng, "Coordinate Attention for Efficient Mobile Network Design", CVPR 2021, §3.

    Attributes:
      reduction: r.
      dtype: of y; None: that of x. Gates are at least float32.
      axis_name: mapped axis that BN statistics are averaged over.

    Call:
      x: [B, H, W, C], any floating dtype; train: whether BN uses and updates batch statistics.

    Returns:
      [B, H, W, C] in `dtype`.

    Raises:
      UsageError: x is no feature map, or a field does not fit its annotation.

    >>> import jax
    >>> x = jax.random.normal(jax.random.key(0), (2, 4, 5, 32))
    >>> y, _ = CoordinateAttention().init_with_output(jax.random.key(1), x, train=False)
    >>> y.shape
    (2, 4, 5, 32)
    """

    published: ClassVar = Published(after="conv")
    torch_names: ClassVar = (
        (r"\battention/reduce\b", "attention.conv1"),
        (r"\battention/norm\b", "attention.bn1"),
        (r"\battention/rows\b", "attention.conv_h"),
        (r"\battention/columns\b", "attention.conv_w"),
    )

    reduction: Count = 32
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def gate(self, x: FeatureMap, train: bool) -> Gates:
        height, channels = x.shape[1], x.shape[3]
        inner = max(8, channels // self.reduction)
        y = jnp.concatenate([x.mean(2), x.mean(1)], axis=1)
        y = PointwiseConv(inner, kernel_init=None, name="reduce")(y)
        y = nn.hard_swish(BatchNorm(axis_name=self.axis_name, name="norm")(y, train))
        rows, columns = y[:, :height], y[:, height:]
        rows = nn.sigmoid(PointwiseConv(channels, kernel_init=None, name="rows")(rows))
        columns = nn.sigmoid(PointwiseConv(channels, kernel_init=None, name="columns")(columns))
        return rows[:, :, None] * columns[:, None, :]
