"""ResNets for 32×32 images, post-activation and pre-activation (He et al. 2016a §4.2; 2016b §3)."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax

from sop.errors import UsageError
from sop.models import residual
from sop.models.network import BatchNorm, Conv, Network
from sop.models.parts import Parts, Stages


class CifarResNet(nn.Module):
    """Three stages of widths 16, 32, 64: [B,H,W,3] → [B,H/4,W/4,C], H/2 with `last_stride` 1.

    Attributes:
      attention: for each stage, the attention of each of its blocks (None: no attention).
      block: of blocks.
      last_stride: stride of the third stage.
      preactivation: norm and ReLU stand at the end of the network, not after the first convolution.
      conv, norm: factories.
    """

    attention: Stages
    block: Callable[..., nn.Module]
    last_stride: int
    preactivation: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        norm = partial(self.norm, use_running_average=not train)
        x = self.conv(16, (3, 3), padding=1, name="conv1")(images)
        if not self.preactivation:
            x = nn.relu(norm(name="bn1")(x))
        strides = (1, 2, self.last_stride)
        x = residual.stages(self.block, self.attention, (16, 32, 64), strides, x, train)
        return nn.relu(norm(name="bn")(x)) if self.preactivation else x


def cifar_resnet(
    parts: Parts,
    depth: int,
    preactivation: bool,
    *,
    block: Literal["basic", "bottleneck"] | None = None,
    stage_size: int | None = None,
    last_stride: Literal[1, 2] | None = None,
) -> Network:
    """(Pre-activation) ResNet of any depth for 32×32 images.

    Args:
      depth: 6n+2 with basic blocks, 9n+2 with bottlenecks.
      block: by default bottlenecks in depth 164 and 1001, basic blocks in others; with
        pre-activation and CGD, as in its code, bottlenecks from depth 44.
      stage_size: blocks of each of the three stages; by default n; with pre-activation and CGD, as
        in its code, the n of 6n+2 for bottlenecks too.
      last_stride: of the third stage; by default 1 with MPN-COV or GSoP and 2 with others.
    """
    cgd = preactivation and parts.attention_name.startswith("cgd")
    if block is None:
        block = "bottleneck" if depth in (164, 1001) or (cgd and depth >= 44) else "basic"
    if stage_size is None:
        layers = 3 if block == "bottleneck" and not cgd else 2
        stage_size, rest = divmod(depth - 2, 3 * layers)
        if rest or stage_size < 1:
            raise UsageError(
                f"A CIFAR ResNet of {block} blocks has depth {3 * layers}n+2, not {depth}; choose "
                f"such a depth, the other block, or set stage_size."
            )
    if stage_size < 1:
        raise UsageError(f"stage_size is {stage_size}; give a positive number of blocks.")
    module = {
        ("basic", False): residual.BasicBlock,
        ("basic", True): residual.PreactivationBasicBlock,
        ("bottleneck", False): residual.Bottleneck,
        ("bottleneck", True): residual.PreactivationBottleneck,
    }[block, preactivation]
    gsop = parts.attention_name == "gsop"
    mpncov = parts.representation_name == "mpncov"
    pool = parts.strided_pool
    last_stride = last_stride or (1 if gsop or mpncov else 2)
    conv = partial(Conv, dtype=parts.dtype)
    norm = partial(BatchNorm, dtype=parts.dtype, axis_name=parts.axis_name)
    features = CifarResNet(
        attention=parts.blocks((stage_size,) * 3, last_stage=not mpncov),
        block=partial(module, conv=conv, norm=norm, pool=pool),
        last_stride=last_stride,
        preactivation=preactivation,
        conv=conv,
        norm=norm,
    )
    return parts.network(
        features,
        published={
            "mpncov": {"reduction": 128, "num_iters": 3 if gsop else 5, "dropout": 0.5},
        },
        image_size=32,
        min_size=2 * last_stride if pool else 1,
    )
