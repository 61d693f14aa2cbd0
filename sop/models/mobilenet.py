"""MobileNet (Howard et al. 2017, table 1) as in CGD: the first convolution has stride 1."""

from collections.abc import Callable
from typing import Annotated

import flax.linen as nn
import jax

from sop.checks import within
from sop.models.attention import Attention, Stages, attend
from sop.models.backbone import Backbone, TorchNames
from sop.models.network import Network
from sop.models.parts import Parts
from sop.models.plain import torch_kernel

# Width and number of blocks at each resolution; all but the first begin with stride 2.
STAGES = ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2))


class SeparableBlock(nn.Module):
    """Depthwise conv 3×3, norm, ReLU, conv 1×1, norm, ReLU: [B,H,W,C] → [B,H',W',width].

    Attributes:
      width: channels of the output.
      strides: of the depthwise convolution.
      attention: 'conv' stands after the depthwise convolution (He et al. 2019), 'branch' after the
        last norm.
      pool: takes the place of the stride, after the last ReLU, as in GFGP's ResNets; None: stride.
      conv, norm: factories.
    """

    width: int
    strides: int
    attention: Attention | None
    pool: Callable[..., nn.Module] | None
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        strides = 1 if self.pool else self.strides
        channels = x.shape[-1]
        x = self.conv(
            channels, (3, 3), strides, padding=1, feature_group_count=channels, name="conv1"
        )(x)
        x = attend(self.attention, "conv", x, train)
        x = nn.relu(self.norm(name="bn1")(x, train))
        x = self.conv(self.width, (1, 1), name="conv2")(x)
        x = self.norm(name="bn2")(x, train)
        x = nn.relu(attend(self.attention, "branch", x, train))
        if self.pool and self.strides > 1:
            return self.pool(window=2, strides=2, name="pool")(x, train)
        return x


class MobileNet(nn.Module):
    """Stem at stride 1, then separable blocks: [B,H,W,3] → [B,H/16,W/16,1024·multiplier].

    Attributes:
      attention: for each stage, the attention of each of its blocks.
      multiplier: of all widths; their products are rounded.
      block, conv, norm: factories.
    """

    attention: Stages
    multiplier: float
    block: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = self.conv(round(32 * self.multiplier), (3, 3), padding=1, name="conv1")(images)
        x = nn.relu(self.norm(name="bn1")(x, train))
        layers = 0
        for stage, ((width, _), blocks) in enumerate(zip(STAGES, self.attention, strict=True)):
            for index, attention in enumerate(blocks):
                x = self.block(
                    width=round(width * self.multiplier),
                    strides=2 if stage and not index else 1,
                    attention=attention,
                    name=f"layers_{layers}",
                )(x, train)
                layers += 1
        return x


def mobilenet(parts: Parts, *, multiplier: Annotated[float, within(1 / 32, 32.0)] = 1.0) -> Network:
    """MobileNet.

    Args:
      multiplier: of all widths (α in the paper); 0.7 gives CGD's 22, 45, 90, 179, 358, 717.
    """
    conv, norm = parts.conv(kernel_init=torch_kernel), parts.norm()
    features = MobileNet(
        attention=parts.stages([size for _, size in STAGES]),
        multiplier=multiplier,
        block=parts.block(SeparableBlock, pool=parts.strided_pool, conv=conv, norm=norm),
        conv=conv,
        norm=norm,
    )
    return parts.network(features)


TORCH_NAMES = TorchNames(
    names=((r"^features/", ""), (r"^classifier\b", "linear"), (r"^layers_(\d+)", r"layers.\1"))
)
BACKBONES = {"mobilenet": Backbone(mobilenet, TORCH_NAMES)}
