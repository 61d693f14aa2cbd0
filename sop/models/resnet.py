"""ResNet (He et al. 2016a, table 1), ResNeXt (Xie et al. 2017) and GFGP's forms of them."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax

from sop import ops
from sop.checks import Rate
from sop.layers.linear import KERNELS
from sop.models.attention import Stages
from sop.models.backbone import Backbone, TorchNames
from sop.models.network import Initialization, Network, initialized
from sop.models.parts import Parts
from sop.models.residual import BasicBlock, Bottleneck, stages

Pool = Callable[..., nn.Module]


class ResNet(nn.Module):
    """Stem and four stages of widths 64, 128, 256, 512: [B,H,W,3] → [B,H/32,W/32,512·expansion].

    Attributes:
      attention: for each stage, the attention of each of its blocks (None: no attention).
      block: of blocks.
      last_stride: stride of the fourth stage; 1: the output is [B,H/16,W/16,·].
      pool: local pooling that takes the place of strided convolutions (Kobayashi 2019, §4); None:
        those, and a max-pool in the stem.
      patch_stem: the stem goes down by 4 at once, in one 4×4/4 pooling or one strided convolution.
      conv, norm: factories.
    """

    attention: Stages
    block: Callable[..., nn.Module]
    last_stride: int
    pool: Pool | None
    patch_stem: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = self._stem(images, train)
        strides = (1, 2, 2, self.last_stride)
        return stages(self.block, self.attention, (64, 128, 256, 512), strides, x, train)

    def _stem(self, images: jax.Array, train: bool) -> jax.Array:
        strides = 1 if self.pool else 4 if self.patch_stem else 2
        x = self.conv(64, (7, 7), strides, padding=3, name="conv1")(images)
        x = nn.relu(self.norm(name="bn1")(x, train))
        if self.patch_stem:
            return self.pool(window=4, strides=4, name="pool")(x, train) if self.pool else x
        if self.pool is None:
            return ops.max_pool(x, (3, 3), (2, 2), (1, 1))
        x = self.pool(window=2, strides=2, name="pool1")(x, train)
        return self.pool(window=3, strides=2, padding=1, name="pool")(x, train)


def resnet(
    parts: Parts,
    stage_sizes: tuple[int, ...],
    block: Callable[..., nn.Module] = Bottleneck,
    groups: int = 1,
    group_width: int = 64,
    *,
    last_stride: Literal[1, 2] | None = None,
    stem: Literal["7x7", "p"] = "7x7",
    zero_init_residual: bool = False,
    stochastic_depth: Rate = 0.0,
    initialization: Initialization = "he",
) -> Network:
    """ResNet or ResNeXt.

    Args:
      stage_sizes: number of blocks of each stage.
      block: `residual.BasicBlock` or `residual.Bottleneck`.
      groups, group_width: of the 3×3 convolutions: ResNeXt's 32x4d is 32, 4.
      last_stride: of the last stage; by default what attention or representation ask for (1 with
        MPN-COV or GSoP), else 2.
      stem: '7x7', or 'p': GFGP's, which goes down by 4 at once.
      zero_init_residual: the last norm of each branch starts at scale 0 (Goyal et al. 2017, §5.1).
      stochastic_depth: rate at which the last block is left out; others less, linearly.
      initialization: of kernels: 'he'; 'lecun', as in fast MPN-COV's TensorFlow code, where the
        classifier starts as Keras' Dense; 'glorot'.
    """
    pool = parts.strided_pool
    conv, norm = parts.conv(kernel_init=KERNELS[initialization]), parts.norm()
    features = ResNet(
        attention=parts.stages(stage_sizes),
        block=parts.block(
            block,
            conv=conv,
            norm=norm,
            pool=pool,
            groups=groups,
            group_width=group_width,
            zero_init=zero_init_residual,
            stochastic_depth=stochastic_depth,
        ),
        last_stride=last_stride or parts.last_stride,
        pool=pool,
        patch_stem=stem == "p",
        conv=conv,
        norm=norm,
    )
    return parts.network(features, initialized(initialization))


TORCH_NAMES = TorchNames(
    names=(
        (r"^representation\.conv_dr_block\.0\b", "layer_reduce"),
        (r"^representation\.conv_dr_block\.1\b", "layer_reduce_bn"),
        (r"^features/", ""),
        (r"^classifier\b", "fc"),
        (r"^layer(\d)_(\d+)", r"layer\1.\2"),
        (r"\bdownsample_(\d)", r"downsample.\1"),
    ),
    # fast-MPN-COV takes the network apart and numbers its children.
    aliases=(
        (r"^features\.0\.", "conv1."),
        (r"^features\.1\.", "bn1."),
        (r"^features\.4\.", "layer1."),
        (r"^features\.5\.", "layer2."),
        (r"^features\.6\.", "layer3."),
        (r"^features\.7\.", "layer4."),
        (r"^(features\.8|representation\.conv_dr_block\.0)\.", "layer_reduce."),
        (r"^(features\.9|representation\.conv_dr_block\.1)\.", "layer_reduce_bn."),
        (r"^classifier\.", "fc."),
    ),
)


def _backbone(*stage_sizes: int, **sizes) -> Backbone:
    return Backbone(partial(resnet, stage_sizes=stage_sizes, **sizes), TORCH_NAMES)


BACKBONES = {
    "resnet18": _backbone(2, 2, 2, 2, block=BasicBlock),
    "resnet18_cgd": _backbone(1, 2, 2, 1, block=BasicBlock),  # what CGD's code calls resnet18
    "resnet34": _backbone(3, 4, 6, 3, block=BasicBlock),
    "resnet50": _backbone(3, 4, 6, 3),
    "resnet101": _backbone(3, 4, 23, 3),
    "resnet152": _backbone(3, 8, 36, 3),
    "resnext50_32x4d": _backbone(3, 4, 6, 3, groups=32, group_width=4),
    "resnext101_32x8d": _backbone(3, 4, 23, 3, groups=32, group_width=8),
}
