"""Wide ResNets for 32×32 images (Zagoruyko & Komodakis 2016, table 1)."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import flax.linen as nn
import jax

from sop.checks import Rate, within
from sop.errors import UsageError
from sop.models.attention import Attention, Stages, attend
from sop.models.backbone import Backbone, TorchNames
from sop.models.cifar_resnet import PUBLISHED
from sop.models.network import Linear, Network
from sop.models.parts import Parts
from sop.models.residual import drop_branch, stages


class WideBlock(nn.Module):
    """norm, ReLU, conv 3×3, norm, ReLU, dropout, conv 3×3, + shortcut.

    Where the number of channels changes, the shortcut projects what the first ReLU gives, not x.

    Attributes:
      width: channels of the output.
      strides: of the block.
      attention: see `sop.models.attention.attend`.
      pool: local pooling that takes the place of strided convolutions; None: those.
      dropout: rate between the convolutions.
      conv, norm: factories.
      stochastic_depth, depth: see `sop.models.residual.ResidualBlock`.
    """

    width: int
    strides: int
    attention: Attention | None
    pool: Callable[..., nn.Module] | None
    dropout: float
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    stochastic_depth: float = 0.0
    depth: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        strides = 1 if self.pool else self.strides
        y = nn.relu(self.norm(name="bn1")(x, train))
        if x.shape[-1] != self.width:
            x = self.conv(self.width, (1, 1), strides, name="convShortcut")(y)
        y = self.conv(self.width, (3, 3), strides, padding=1, name="conv1")(y)
        y = attend(self.attention, "conv", y, train)
        y = nn.relu(self.norm(name="bn2")(y, train))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = self.conv(self.width, (3, 3), padding=1, name="conv2")(y)
        y = attend(self.attention, "branch", y, train)
        y = drop_branch(y, self.depth * self.stochastic_depth, train) + x
        if self.pool and self.strides > 1:
            y = self.pool(window=self.strides, strides=self.strides, name="pooling")(y, train)
        return y


class WideResNet(nn.Module):
    """Three stages of widths 16k, 32k, 64k: [B,H,W,3] → [B,H/4,W/4,64k].

    Attributes:
      attention: for each stage, the attention of each of its blocks (None: no attention).
      widening: k.
      last_stride: stride of the third stage.
      block: of blocks.
      conv, norm: factories.
    """

    attention: Stages
    widening: int
    last_stride: int
    block: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = self.conv(16, (3, 3), padding=1, name="conv1")(images)
        widths = [16 * self.widening, 32 * self.widening, 64 * self.widening]
        strides = (1, 2, self.last_stride)
        x = stages(self.block, self.attention, widths, strides, x, train, "block{}_layer_{}")
        return nn.relu(self.norm(name="bn1")(x, train))


def wide_resnet(
    parts: Parts,
    depth: Annotated[int, within(1, 2000)],
    widening: Annotated[int, within(1, 64)],
    *,
    dropout: Rate = 0.0,
    stochastic_depth: Rate = 0.0,
    last_stride: Literal[1, 2] | None = None,
) -> Network:
    """Wide ResNet of depth 6n+4 and `widening` k.

    Args:
      depth, widening: as in the name 'wrn28_10_cifar'.
      dropout: rate between the convolutions of a block.
      stochastic_depth: rate at which the last block is left out; others less, linearly.
      last_stride: of the third stage; by default what attention or representation ask for (1 with
        MPN-COV or GSoP), else 2.
    """
    stage_size, rest = divmod(depth - 4, 6)
    if rest or stage_size < 1:
        raise UsageError(f"A wide ResNet has depth 6n+4 (16, 28, 40, …), not {depth}.")
    conv, norm, pool = parts.conv(), parts.norm(), parts.strided_pool
    features = WideResNet(
        attention=parts.stages((stage_size,) * 3),
        widening=widening,
        last_stride=last_stride or parts.last_stride,
        block=parts.block(
            WideBlock,
            pool=pool,
            dropout=dropout,
            stochastic_depth=stochastic_depth,
            conv=conv,
            norm=norm,
        ),
        conv=conv,
        norm=norm,
    )
    return parts.network(features, partial(Linear, bias_init=nn.initializers.zeros))


TORCH_NAMES = TorchNames(
    names=(
        (r"^features/", ""),
        (r"^classifier\b", "fc"),
        (r"^block(\d)_layer_(\d+)", r"block\1.layer.\2"),
    )
)
BACKBONES = {
    "wrn{depth}_{widening}_cifar": Backbone(
        wide_resnet, TORCH_NAMES, published=PUBLISHED, reduction=128, image_size=32
    )
}
