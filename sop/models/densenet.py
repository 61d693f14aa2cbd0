"""DenseNet-BC (Huang et al. 2017, table 1) and GFGP's forms of it."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from sop import ops
from sop.checks import Rate
from sop.models.attention import Attention, Stages, attend
from sop.models.backbone import Backbone, TorchNames
from sop.models.network import Linear, Network
from sop.models.parts import Parts

kaiming_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class DenseLayer(nn.Module):
    """norm, ReLU, conv 1×1, norm, ReLU, conv 3×3, beside its input: [B,H,W,C] → [B,H,W,C+growth].

    Attributes:
      growth: channels it adds.
      dropout: rate at the end of the branch.
      attention: 'conv' stands after the 1×1 convolution, 'branch' at the end, on all channels.
      conv, norm: factories.
    """

    growth: int
    dropout: float
    attention: Attention | None
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = nn.relu(self.norm(name="norm1")(x, train))
        y = self.conv(4 * self.growth, (1, 1), name="conv1")(y)
        y = attend(self.attention, "conv", y, train)
        y = nn.relu(self.norm(name="norm2")(y, train))
        y = self.conv(self.growth, (3, 3), padding=1, name="conv2")(y)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return attend(self.attention, "branch", jnp.concatenate([x, y], -1), train)


class DenseBlock(nn.Module):
    """Dense layers one after the other: [B,H,W,C] → [B,H,W,C + layers·growth].

    Attributes:
      attention: of each layer.
      layer: factory.
    """

    attention: list[Attention | None]
    layer: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for index, attention in enumerate(self.attention, 1):
            x = self.layer(attention=attention, name=f"denselayer{index}")(x, train)
        return x


class Transition(nn.Module):
    """norm, ReLU, conv 1×1 to half the channels, average 2×2/2: [B,H,W,C] → [B,H/2,W/2,C/2].

    Attributes:
      pool: in place of the average, after one more norm and ReLU (Kobayashi 2019); None: average.
      skip: the convolution has stride 2 and nothing follows.
      conv, norm: factories.
    """

    pool: Callable[..., nn.Module] | None
    skip: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        strides = 2 if self.skip else 1
        x = nn.relu(self.norm(name="norm")(x, train))
        x = self.conv(x.shape[-1] // 2, (1, 1), strides, name="conv")(x)
        if self.skip:
            return x
        if self.pool is None:
            return nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.relu(self.norm(name="norm2")(x, train))
        return self.pool(window=2, strides=2, name="pool")(x, train)


class DenseNet(nn.Module):
    """Stem, four dense blocks with transitions between, norm, ReLU: [B,H,W,3] → [B,H/32,W/32,C].

    Attributes:
      attention: for each block, the attention of each of its layers.
      width: channels of the stem.
      stem: 'max', conv 7×7/2 and max-pool 3×3/2; 'pool', conv 7×7/1 and `pool` 2×2/2 and 3×3/2;
        'skip', conv 7×7/4.
      pool: see there.
      layer, transition, conv, norm: factories.
    """

    attention: Stages
    width: int
    stem: str
    pool: Callable[..., nn.Module] | None
    layer: Callable[..., nn.Module]
    transition: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        strides = {"max": 2, "pool": 1, "skip": 4}[self.stem]
        x = self.conv(self.width, (7, 7), strides, padding=3, name="conv0")(images)
        x = nn.relu(self.norm(name="norm0")(x, train))
        if self.stem == "max":
            x = ops.max_pool(x, (3, 3), (2, 2), (1, 1))
        elif self.stem == "pool":
            x = self.pool(window=2, strides=2, name="pool00")(x, train)
            x = self.pool(window=3, strides=2, padding=1, name="pool0")(x, train)
        for index, layers in enumerate(self.attention, 1):
            x = DenseBlock(layers, self.layer, name=f"denseblock{index}")(x, train)
            if index < len(self.attention):
                x = self.transition(name=f"transition{index}")(x, train)
        return nn.relu(self.norm(name="norm5")(x, train))


def densenet(
    parts: Parts,
    stage_sizes: tuple[int, ...],
    width: int = 64,
    growth: int = 32,
    *,
    dropout: Rate = 0.0,
) -> Network:
    """DenseNet; a local pooling named in the config gives GFGP's form of it.

    'average' leaves the published stem; 'skip' strides the convolutions of stem and transitions.

    Args:
      stage_sizes: number of layers of each dense block.
      width: channels of the stem.
      growth: channels that each layer adds.
      dropout: rate at the end of each dense layer.
    """
    conv, norm = parts.conv(kernel_init=kaiming_fan_in), parts.norm()
    pool = parts.strided_pool
    if parts.pool_name == "gfgp":
        pool = partial(pool, kernel_init=kaiming_fan_in)
    stem = {None: "max", "average": "max", "skip": "skip"}.get(parts.pool_name, "pool")
    features = DenseNet(
        attention=parts.stages(stage_sizes),
        width=width,
        stem=stem,
        pool=pool,
        layer=parts.block(DenseLayer, growth=growth, dropout=dropout, conv=conv, norm=norm),
        transition=partial(
            Transition, pool=pool, skip=parts.pool_name == "skip", conv=conv, norm=norm
        ),
        conv=conv,
        norm=norm,
    )
    # fast MPN-COV puts a new Linear in the place of the classifier; GFGP keeps it.
    bias = None if parts.pool_name is None else nn.initializers.zeros
    return parts.network(features, partial(Linear, bias_init=bias))


# Early files separate the number by a dot.
TORCH_NAMES = TorchNames(aliases=((r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),))


def _backbone(*stage_sizes: int, **widths: int) -> Backbone:
    return Backbone(partial(densenet, stage_sizes=stage_sizes, **widths), TORCH_NAMES)


BACKBONES = {
    "densenet121": _backbone(6, 12, 24, 16),
    "densenet161": _backbone(6, 12, 36, 24, width=96, growth=48),
    "densenet169": _backbone(6, 12, 32, 32),
    "densenet201": _backbone(6, 12, 48, 32),
}
