"""ResNets for 32×32 images, post-activation and pre-activation (He et al. 2016a §4.2; 2016b §3)."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import flax.linen as nn
import jax

from sop.checks import Rate, within
from sop.errors import UsageError
from sop.layers.linear import KERNELS
from sop.models import residual, resnet
from sop.models.attention import Stages
from sop.models.backbone import Backbone, TorchNames
from sop.models.network import Initialization, Network, initialized
from sop.models.parts import Parts


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
        x = self.conv(16, (3, 3), padding=1, name="conv1")(images)
        if not self.preactivation:
            x = nn.relu(self.norm(name="bn1")(x, train))
        strides = (1, 2, self.last_stride)
        x = residual.stages(self.block, self.attention, (16, 32, 64), strides, x, train)
        return nn.relu(self.norm(name="bn")(x, train)) if self.preactivation else x


def cifar_resnet(
    parts: Parts,
    depth: Annotated[int, within(1, 2000)],
    preactivation: bool,
    *,
    block: Literal["basic", "bottleneck"] | None = None,
    stage_size: Annotated[int, within(1, 700)] | None = None,
    last_stride: Literal[1, 2] | None = None,
    shortcut: Literal["input", "activation"] = "input",
    stochastic_depth: Rate = 0.0,
    initialization: Initialization = "he",
) -> Network:
    """(Pre-activation) ResNet of any depth for 32×32 images.

    Args:
      depth: 6n+2 with basic blocks, 9n+2 with bottlenecks.
      block: by default bottlenecks in depth 164 and 1001, basic blocks in others; with
        pre-activation and CGD, as in its code, bottlenecks from depth 44.
      stage_size: blocks of each of the three stages; by default n; with pre-activation and CGD, as
        in its code, the n of 6n+2 for bottlenecks too.
      last_stride: of the third stage; by default what attention or representation ask for (1 with
        MPN-COV or GSoP), else 2.
      shortcut: what the 1×1 projections of pre-activation shortcuts take: the block's 'input', as
        in CGD's code, or its 'activation', ReLU(norm(input)), as in fast MPN-COV's TensorFlow code.
      stochastic_depth: rate at which the last block is left out; others less, linearly.
      initialization: of kernels: 'he'; 'glorot', as in that code, where the classifier starts as
        Keras' Dense; 'lecun'.

    Raises:
      UsageError: no such depth, or 'activation' without pre-activation.
    """
    cgd = preactivation and parts.attention is not None and parts.attention.name.startswith("cgd")
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
    module = {
        ("basic", False): residual.BasicBlock,
        ("basic", True): residual.PreactivationBasicBlock,
        ("bottleneck", False): residual.Bottleneck,
        ("bottleneck", True): residual.PreactivationBottleneck,
    }[block, preactivation]
    if shortcut == "activation" and not preactivation:
        raise UsageError(
            f"config.model.shortcut is 'activation', but {parts.backbone} has no pre-activation; "
            f"leave it out, or take preresnet{depth}_cifar."
        )
    conv, norm = parts.conv(kernel_init=KERNELS[initialization]), parts.norm()
    features = CifarResNet(
        attention=parts.stages((stage_size,) * 3),
        block=parts.block(
            module,
            conv=conv,
            norm=norm,
            pool=parts.strided_pool,
            project_activation=shortcut == "activation",
            stochastic_depth=stochastic_depth,
        ),
        last_stride=last_stride or parts.last_stride,
        preactivation=preactivation,
        conv=conv,
        norm=norm,
    )
    return parts.network(features, initialized(initialization))


PUBLISHED = {"mpncov": {"dropout": 0.5}}


def _backbone(preactivation: bool) -> Backbone:
    return Backbone(
        partial(cifar_resnet, preactivation=preactivation),
        TorchNames(names=resnet.TORCH_NAMES.names, unused=(r"^layer\d\.\d+\.scale$",)),
        published=PUBLISHED,
        reduction=128,
        image_size=32,
    )


BACKBONES = {
    "resnet{depth}_cifar": _backbone(preactivation=False),
    "preresnet{depth}_cifar": _backbone(preactivation=True),
}
