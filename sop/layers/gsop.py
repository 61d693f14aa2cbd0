"""Global second-order pooling inside a network: attention from covariances."""

import math
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from sop import ops
from sop.checks import Count, Width
from sop.errors import UsageError
from sop.layers.arguments import check_call
from sop.layers.linear import PointwiseConv, RowConv, kaiming_normal, torch_uniform
from sop.layers.norm import BatchNorm
from sop.layers.published import Published
from sop.ops.annotations import FeatureMap


class ChannelWeights(nn.Module):
    """GSoP's weight for each channel: [B, H, W, C] → [B, 1, 1, C] in (0, 1).

    ReLU → 1×1 conv to d → BN → ReLU → Σ, d × d → BN of rows → row conv → 1×1 conv → sigmoid.
    Attributes as in `GSoP`.
    """

    dim: Width = 128
    stride: Count | None = None
    planes: Count | None = None
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b 1 1 c"]:
        channels = x.shape[-1]
        stride = self.stride or (2 if self.planes == 64 else 1)
        y = PointwiseConv(self.dim, stride, dtype=self.dtype, name="reduce")(nn.relu(x))
        y = nn.relu(BatchNorm(axis_name=self.axis_name, name="reduce_norm")(y, train))
        y = BatchNorm(axis_name=self.axis_name, axis=1, name="row_norm")(ops.covariance(y), train)
        y = RowConv(name="row_conv")(y)
        y = nn.sigmoid(PointwiseConv(channels, name="expand")(y))
        return y[:, None, None, :]


class PositionWeights(nn.Module):
    """GSoP's weight for each position: [B, H, W, C] → [B, H, W, 1] in (0, 1).

    ReLU → 1×1 conv to d → BN → average of g × g cells → `sop.ops.position_covariance`, g² × g² →
    BN of rows → row conv → ReLU → 1×1 conv to g² → sigmoid → g × g cells spread over H × W.
    Attributes as in `GSoP`.
    """

    dim: Width = 128
    grid: Width = 8
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b h w 1"]:
        y = PointwiseConv(self.dim, dtype=self.dtype, name="reduce")(nn.relu(x))
        y = BatchNorm(axis_name=self.axis_name, name="reduce_norm")(y, train)
        y = ops.position_covariance(ops.adaptive_average_pool(y, (self.grid, self.grid)))
        y = BatchNorm(axis_name=self.axis_name, axis=1, name="row_norm")(y, train)
        y = nn.relu(RowConv(name="row_conv")(y))
        y = nn.sigmoid(PointwiseConv(self.grid**2, name="expand")(y))
        return ops.adaptive_average_pool(y.reshape(-1, self.grid, self.grid, 1), x.shape[1:3])


class GSoP(nn.Module):
    """Global second-order pooling block: features rescaled by what their covariance says.

    With c the weight of each channel and p that of each position:
    'channel' x·c; 'position' ReLU(x·p); 'fusion_avg' x·c + ReLU(x·p); 'fusion_max'
    max(x·c, ReLU(x·p)); 'fusion_concat' BN(conv₁(x·c) + conv₂(ReLU(x·p))), each a grouped
    (2f+5) × 1 convolution with g = C/64 groups and f = ⌊log₂(32/g)⌋.
    Gao et al., "Global Second-order Pooling Convolutional Networks", CVPR 2019, §3.

    Attributes:
      dim: d, the width that the features are reduced to before the covariance.
      manner: which of the five.
      stride: of the reduction before the channel covariance; None: as published, 2 in a block of
        64 planes, else 1.
      grid: g, into how many rows and columns of cells the position attention divides a map.
      planes: width of the residual block that this stands in, if any.
      dtype: compute type of the products with x; None: that of x. Covariance, BN and sigmoid are
        float32.
      axis_name: mapped axis that BN statistics are averaged over.

    Call:
      x: [B, H, W, C], any floating dtype; train: whether BN uses and updates batch statistics.

    Returns:
      [B, H, W, C] in `dtype`.

    Raises:
      UsageError: x is no feature map; a field makes no sense; 'fusion_concat' with C that is not a
        multiple of 64.

    >>> x = jnp.ones((2, 4, 4, 32))
    >>> y, _ = GSoP(dim=8).init_with_output(jax.random.key(0), x, train=False)
    >>> y.shape
    (2, 4, 4, 32)
    """

    published: ClassVar = Published(
        blocks="last",
        # As the flag `attpos` of its published code.
        symbols={
            "2": {"manner": "position"},
            "+": {"manner": "fusion_avg"},
            "M": {"manner": "fusion_max"},
            "&": {"manner": "fusion_concat"},
        },
        representation={"mpncov": {"num_iters": 3}},
        last_stride=1,
    )
    torch_names: ClassVar = (
        (r"\battention/channel_conv\b", "dilate_conv_for_concat1"),
        (r"\battention/position_conv\b", "dilate_conv_for_concat2"),
        (r"\battention/concat_norm\b", "bn_for_concat"),
        (r"\battention/channel/reduce\b", "conv_for_DR"),
        (r"\battention/channel/reduce_norm\b", "bn_for_DR"),
        (r"\battention/channel/row_norm\b", "row_bn"),
        (r"\battention/channel/row_conv\b", "row_conv_group"),
        (r"\battention/channel/expand\b", "fc_adapt_channels"),
        (r"\battention/position/reduce\b", "conv_for_DR_spatial"),
        (r"\battention/position/reduce_norm\b", "bn_for_DR_spatial"),
        (r"\battention/position/row_norm\b", "row_bn_for_spatial"),
        (r"\battention/position/row_conv\b", "row_conv_group_for_spatial"),
        (r"\battention/position/expand\b", "fc_adapt_channels_for_spatial"),
    )

    dim: Width = 128
    manner: Literal["channel", "position", "fusion_avg", "fusion_max", "fusion_concat"] = "channel"
    stride: Count | None = None
    grid: Width = 8
    planes: Count | None = None
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b h w c"]:
        check_call(self, x)
        dtype = self.dtype or x.dtype
        x = ops.widen(x.astype(dtype))
        options: dict[str, Any] = {"dim": self.dim, "dtype": self.dtype}
        options["axis_name"] = self.axis_name
        if self.manner != "position":
            of_channels = ChannelWeights(
                stride=self.stride, planes=self.planes, **options, name="channel"
            )
            channel = x * of_channels(x, train)
        if self.manner != "channel":
            of_positions = PositionWeights(grid=self.grid, **options, name="position")
            position = nn.relu(x * of_positions(x, train))
        match self.manner:
            case "channel":
                y = channel
            case "position":
                y = position
            case "fusion_avg":
                y = channel + position
            case "fusion_max":
                y = jnp.maximum(channel, position)
            case "fusion_concat":
                y = self._column_conv("channel_conv", channel)
                y = y + self._column_conv("position_conv", position)
                y = BatchNorm(axis_name=self.axis_name, name="concat_norm")(y, train)
        return ops.narrow(y, dtype)

    def _column_conv(self, name, x):
        channels = x.shape[-1]
        if channels % 64:
            raise UsageError(
                f"GSoP with manner 'fusion_concat' got {channels} channels: give a multiple of 64, "
                "the width of its convolution groups, or choose another manner."
            )
        groups = channels // 64
        margin = int(math.log2(32 / groups)) + 2
        fan_in = 64 * (2 * margin + 1)
        return nn.Conv(
            channels,
            (2 * margin + 1, 1),
            padding=((margin, margin), (0, 0)),
            feature_group_count=groups,
            kernel_init=kaiming_normal,
            bias_init=torch_uniform(fan_in),
            name=name,
        )(x)


class CompactGSoP(nn.Module):
    """The compact plug-in form of GSoP's channel attention.

    x · sigmoid(BN(W₂ BN(rowconv(Σ)))) with Σ = Σᵢ (yᵢ−ȳ)(yᵢ−ȳ)ᵀ, not divided by n, of
    y = ReLU(BN(W₁ x)); all convolutions with bias, initialised as PyTorch does by default.
    After Gao et al., CVPR 2019, §3.

    Attributes:
      dim: d, the width of y.
      dtype: compute type of the products with x; None: that of x. The rest is float32.
      axis_name: mapped axis that BN statistics are averaged over.

    Call:
      x: [B, H, W, C], any floating dtype; train: whether BN uses and updates batch statistics.

    Returns:
      [B, H, W, C] in `dtype`.

    Raises:
      UsageError: x is no feature map or dim no positive integer.

    >>> x = jnp.ones((2, 4, 4, 32))
    >>> y, _ = CompactGSoP(dim=8).init_with_output(jax.random.key(0), x, train=False)
    >>> y.shape
    (2, 4, 4, 32)
    """

    published: ClassVar = Published(blocks="last")
    torch_names: ClassVar = (
        (r"\battention/reduce\b", "attention.conv1.0"),
        (r"\battention/reduce_norm\b", "attention.conv1.1"),
        (r"\battention/row_conv\b", "attention.row_wise_conv.0"),
        (r"\battention/row_norm\b", "attention.row_wise_conv.1"),
        (r"\battention/expand\b", "attention.conv2.0"),
        (r"\battention/expand_norm\b", "attention.conv2.1"),
    )

    dim: Width = 128
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b h w c"]:
        check_call(self, x)
        dtype = self.dtype or x.dtype
        x = ops.widen(x.astype(dtype))
        y = PointwiseConv(self.dim, kernel_init=None, dtype=self.dtype, name="reduce")(x)
        y = nn.relu(BatchNorm(axis_name=self.axis_name, name="reduce_norm")(y, train))
        y = RowConv(kernel_init=None, name="row_conv")(ops.covariance(y) * math.prod(y.shape[1:3]))
        y = BatchNorm(axis_name=self.axis_name, name="row_norm")(y, train)
        y = PointwiseConv(x.shape[-1], kernel_init=None, name="expand")(y)
        y = nn.sigmoid(BatchNorm(axis_name=self.axis_name, name="expand_norm")(y, train))
        return ops.narrow(x * y[:, None, None, :], dtype)
