"""MobileNet (Howard et al. 2017, table 1) as in CGD: the first convolution has stride 1."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax

from sop.errors import UsageError
from sop.models.network import BatchNorm, Conv, Network
from sop.models.parts import Attention, Parts, Stages, attend
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
        norm = partial(self.norm, use_running_average=not train)
        strides = 1 if self.pool else self.strides
        channels = x.shape[-1]
        x = self.conv(
            channels, (3, 3), strides, padding=1, feature_group_count=channels, name="conv1"
        )(x)
        x = attend(self.attention, "conv", x, train)
        x = nn.relu(norm(name="bn1")(x))
        x = self.conv(self.width, (1, 1), name="conv2")(x)
        x = nn.relu(attend(self.attention, "branch", norm(name="bn2")(x), train))
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
        x = nn.relu(self.norm(use_running_average=not train, name="bn1")(x))
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


def mobilenet(parts: Parts, *, multiplier: float = 1.0) -> Network:
    """MobileNet.

    Args:
      multiplier: of all widths (α in the paper); 0.7 gives CGD's 22, 45, 90, 179, 358, 717.
    """
    if multiplier * 32 < 1:
        raise UsageError(f"MobileNet's multiplier is {multiplier}; give at least 1/32.")
    conv = partial(Conv, kernel_init=torch_kernel, dtype=parts.dtype)
    norm = partial(BatchNorm, dtype=parts.dtype, axis_name=parts.axis_name)
    pool = parts.strided_pool
    features = MobileNet(
        attention=parts.blocks(
            [size for _, size in STAGES], last_stage=parts.representation_name != "mpncov"
        ),
        multiplier=multiplier,
        block=partial(SeparableBlock, pool=pool, conv=conv, norm=norm),
        conv=conv,
        norm=norm,
    )
    return parts.network(
        features,
        published={"mpncov": {"reduction": 256, "num_iters": 5}},
        min_size=16 if pool else 1,
    )
