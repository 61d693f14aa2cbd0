"""ResNet (He et al. 2016a, table 1), ResNeXt (Xie et al. 2017) and GFGP's forms of them."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax

from sop.models.network import BatchNorm, Conv, Network
from sop.models.parts import Parts, Stages
from sop.models.residual import Bottleneck, stages

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
        x = nn.relu(self.norm(use_running_average=not train, name="bn1")(x))
        if self.patch_stem:
            return self.pool(window=4, strides=4, name="pool")(x, train) if self.pool else x
        if self.pool is None:
            return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
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
) -> Network:
    """ResNet or ResNeXt.

    Args:
      stage_sizes: number of blocks of each stage.
      block: `residual.BasicBlock` or `residual.Bottleneck`.
      groups, group_width: of the 3×3 convolutions: ResNeXt's 32x4d is 32, 4.
      last_stride: of the last stage; by default 1 with MPN-COV or GSoP and 2 with others.
      stem: '7x7', or 'p': GFGP's, which goes down by 4 at once.
    """
    pool = parts.strided_pool
    gsop = parts.attention_name == "gsop"
    mpncov = parts.representation_name == "mpncov"
    conv = partial(Conv, dtype=parts.dtype)
    norm = partial(BatchNorm, dtype=parts.dtype, axis_name=parts.axis_name)
    last_stride = last_stride or (1 if gsop or mpncov else 2)
    # Poolings of windows 2 round down; that of window 3 with padding rounds up.
    behind_stem = 4 * last_stride
    before_stem = 4 * behind_stem if stem == "p" else 2 * (2 * behind_stem - 1)
    features = ResNet(
        attention=parts.blocks(stage_sizes, last_stage=not mpncov),
        block=partial(
            block, conv=conv, norm=norm, pool=pool, groups=groups, group_width=group_width
        ),
        last_stride=last_stride,
        pool=pool,
        patch_stem=stem == "p",
        conv=conv,
        norm=norm,
    )
    return parts.network(
        features,
        published={"mpncov": {"reduction": 256, "num_iters": 3 if gsop else 5}},
        min_size=before_stem if pool else 1,
    )
