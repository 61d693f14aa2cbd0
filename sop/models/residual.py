"""Residual blocks: post-activation (He et al. 2016a) and pre-activation (He et al. 2016b)."""

from collections.abc import Callable

import flax.linen as nn
import jax

from sop.layers import BatchNorm
from sop.models.attention import Attention, attend


def stages(block, attention, widths, strides, x, train, name="layer{}_{}"):
    """Stages of residual blocks, one after another; called inside a network's features.

    Args:
      block: factory of blocks.
      attention: for each stage, the attention of each of its blocks (None: no attention).
      widths, strides: of each stage.
      x: [B,H,W,C].
      name: of a block, given its stage (from 1) and its place there (from 0).
    """
    total, done = sum(map(len, attention)), 0
    for stage, (blocks, width, stride) in enumerate(zip(attention, widths, strides, strict=True)):
        for index, each in enumerate(blocks):
            done += 1
            x = block(
                width=width,
                strides=1 if index else stride,
                attention=each,
                depth=done / total,
                name=name.format(stage + 1, index),
            )(x, train)
    return x


def drop_branch(y: jax.Array, rate: float, train: bool) -> jax.Array:
    """Leaves out the residual branch of whole examples in training: [B,…,C] → [B,…,C].

    Stochastic depth (Huang et al. 2016); what stays is divided by 1 − rate, so that nothing changes
    in evaluation. Drawn from the stream 'dropout', as submodule 'stochastic_depth'.
    """
    others = tuple(range(1, y.ndim))
    dropout = nn.Dropout(rate, others, deterministic=not train, name="stochastic_depth")
    return dropout(y)


class ResidualBlock(nn.Module):
    """What the blocks have in common: [B,H,W,C] → [B,H/strides,W/strides,width·expansion].

    Attributes:
      width: channels of the 3×3 convolutions ("planes").
      strides: of the block.
      attention: see `sop.models.attention.attend`; it may want to know `width` as its `planes`.
      pool: local pooling that takes the place of strided convolutions; None: those.
      conv, norm: factories.
      groups, group_width: of the 3×3 convolution, as ResNeXt's "32x4d" (bottleneck alone).
      zero_init: the last norm of the branch starts at scale 0 (without pre-activation alone).
      stochastic_depth: rate at which the network's last block loses its branch; that of this one is
        `depth` times it, its place in the network in (0, 1]: see `drop_branch`.
      project_activation: a shortcut that changes the shape projects ReLU(norm(x)), not x (with
        pre-activation alone).
    """

    width: int
    strides: int = 1
    attention: Attention | None = None
    pool: Callable[..., nn.Module] | None = None
    conv: Callable[..., nn.Module] = nn.Conv
    norm: Callable[..., nn.Module] = BatchNorm
    groups: int = 1
    group_width: int = 64
    zero_init: bool = False
    project_activation: bool = False
    stochastic_depth: float = 0.0
    depth: float = 1.0

    @property
    def last_scale(self) -> Callable[..., jax.Array]:
        return nn.initializers.zeros if self.zero_init else nn.initializers.ones

    @property
    def conv_strides(self) -> int:
        return self.strides if self.pool is None else 1

    def keeps_shape(self, x: jax.Array, channels: int) -> bool:
        return self.strides == 1 and x.shape[-1] == channels

    def shortcut(self, x: jax.Array, channels: int, train: bool) -> jax.Array:
        """x, or its 1×1 projection and norm where the branch changes its shape."""
        if self.keeps_shape(x, channels):
            return x
        x = self.conv(channels, (1, 1), self.conv_strides, name="downsample_0")(x)
        return self.norm(name="downsample_1")(x, train)

    def bypass(self, x: jax.Array, activation: jax.Array, channels: int) -> jax.Array:
        """The shortcut with pre-activation: x, or a projection without norm."""
        if self.keeps_shape(x, channels):
            return x
        x = activation if self.project_activation else x
        return self.conv(channels, (1, 1), self.conv_strides, name="downsample_0")(x)

    def branch(self, y: jax.Array, train: bool) -> jax.Array:
        """The end of the residual branch: attention, stochastic depth."""
        y = attend(self.attention, "branch", y, train, planes=self.width)
        return drop_branch(y, self.depth * self.stochastic_depth, train)

    def pooled(self, x: jax.Array, train: bool) -> jax.Array:
        if self.pool is None or self.strides == 1:
            return x
        return self.pool(window=self.strides, strides=self.strides, name="pooling")(x, train)


class BasicBlock(ResidualBlock):
    """conv 3×3, norm, ReLU, conv 3×3, norm, + shortcut, ReLU."""

    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = self.conv(self.width, (3, 3), self.conv_strides, padding=1, name="conv1")(x)
        y = attend(self.attention, "conv", y, train, planes=self.width)
        y = nn.relu(self.norm(name="bn1")(y, train))
        y = self.conv(self.width, (3, 3), padding=1, name="conv2")(y)
        y = self.norm(scale_init=self.last_scale, name="bn2")(y, train)
        y = self.branch(y, train)
        y = nn.relu(y + self.shortcut(x, self.width, train))
        return self.pooled(y, train)


class Bottleneck(ResidualBlock):
    """conv 1×1, norm, ReLU, conv 3×3, norm, ReLU, conv 1×1, norm, + shortcut, ReLU."""

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        inner = self.width * self.group_width // 64 * self.groups
        y = self.conv(inner, (1, 1), name="conv1")(x)
        y = attend(self.attention, "conv", y, train, planes=self.width)
        y = nn.relu(self.norm(name="bn1")(y, train))
        y = self.conv(
            inner,
            (3, 3),
            self.conv_strides,
            padding=1,
            feature_group_count=self.groups,
            name="conv2",
        )(y)
        y = nn.relu(self.norm(name="bn2")(y, train))
        y = self.conv(4 * self.width, (1, 1), name="conv3")(y)
        y = self.norm(scale_init=self.last_scale, name="bn3")(y, train)
        y = self.branch(y, train)
        y = nn.relu(y + self.shortcut(x, 4 * self.width, train))
        return self.pooled(y, train)


class PreactivationBasicBlock(ResidualBlock):
    """norm, ReLU, conv 3×3, norm, ReLU, conv 3×3, + shortcut."""

    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = nn.relu(self.norm(name="bn1")(x, train))
        x = self.bypass(x, y, self.width)
        y = self.conv(self.width, (3, 3), self.conv_strides, padding=1, name="conv1")(y)
        y = attend(self.attention, "conv", y, train, planes=self.width)
        y = nn.relu(self.norm(name="bn2")(y, train))
        y = self.conv(self.width, (3, 3), padding=1, name="conv2")(y)
        y = self.branch(y, train)
        return self.pooled(y + x, train)


class PreactivationBottleneck(ResidualBlock):
    """norm, ReLU, conv 1×1, norm, ReLU, conv 3×3, norm, ReLU, conv 1×1, + shortcut."""

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = nn.relu(self.norm(name="bn1")(x, train))
        x = self.bypass(x, y, 4 * self.width)
        y = self.conv(self.width, (1, 1), name="conv1")(y)
        y = nn.relu(self.norm(name="bn2")(y, train))
        y = self.conv(self.width, (3, 3), self.conv_strides, padding=1, name="conv2")(y)
        y = attend(self.attention, "conv", y, train, planes=self.width)
        y = nn.relu(self.norm(name="bn3")(y, train))
        y = self.conv(4 * self.width, (1, 1), name="conv3")(y)
        y = self.branch(y, train)
        return self.pooled(y + x, train)
