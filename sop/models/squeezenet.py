"""SqueezeNet 1.0 (Iandola et al. 2016, table 1) and 1.1, and CGD's form of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sop.checks import Rate
from sop.layers import MaxPool
from sop.models.attention import Attention, Stages, attend
from sop.models.backbone import Backbone, TorchNames, number_layers
from sop.models.network import Conv, Linear, Network
from sop.models.parts import Parts

# Channels, kernel size of the first convolution; squeeze widths of the Fire modules between
# poolings. A Fire module gives eight times the channels it squeezes to.
VERSIONS = {
    "1.0": (96, 7, ((16, 16, 32), (32, 48, 48, 64), (64,))),
    "1.1": (64, 3, ((16, 16), (32, 32), (48, 48, 64, 64))),
}


class Fire(nn.Module):
    """conv 1×1, ReLU, then conv 1×1 and conv 3×3 side by side, ReLU: [B,H,W,C] → [B,H,W,8·squeeze].

    Attributes:
      squeeze: channels of the first convolution.
      attention: 'conv' stands after it and is followed by a norm that the plain module lacks (He et
        al. 2019); 'branch' stands on the output.
      conv, norm: factories; the norm stands after that attention alone.
    """

    squeeze: int
    attention: Attention | None
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.conv(self.squeeze, (1, 1), name="squeeze")(x)
        x = attend(self.attention, "conv", x, train)
        if self.norm is not None and self.attention is not None:
            x = self.norm(name="bn")(x, train)
        x = nn.relu(x)
        small = self.conv(4 * self.squeeze, (1, 1), name="expand1x1")(x)
        large = self.conv(4 * self.squeeze, (3, 3), padding=1, name="expand3x3")(x)
        x = nn.relu(jnp.concatenate([small, large], -1))
        return attend(self.attention, "branch", x, train)


class SqueezeNet(nn.Module):
    """conv1, then Fire modules 2…9, a 3×3/2 pooling (ceil mode) before each group of them.

    [B,H,W,3] → [B,H/16,W/16,512].

    Attributes:
      version: key of `VERSIONS`.
      attention: for each group, the attention of each of its Fire modules.
      fire, pool, conv: factories.
    """

    version: str
    attention: Stages
    fire: Callable[..., nn.Module]
    pool: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        width, size, groups = VERSIONS[self.version]
        x = nn.relu(self.conv(width, (size, size), 2, padding=0, name="conv1")(images))
        fires = 1
        for index, (group, attentions) in enumerate(zip(groups, self.attention, strict=True), 1):
            x = self.pool(window=3, strides=2, ceil_mode=True, name=f"pool{index}")(x, train)
            for squeeze, attention in zip(group, attentions, strict=True):
                fires += 1
                x = self.fire(squeeze, attention, name=f"fire{fires}")(x, train)
        return x


class ConvClassifier(nn.Module):
    """Dropout, conv 1×1 to one map for each class, ReLU, mean: [B,H,W,C] → [B,num_classes].

    Attributes:
      num_classes: number of maps.
      dropout: rate.
      dtype: compute type.
    """

    num_classes: int
    dropout: float
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        normal = nn.initializers.normal(0.01)
        conv = Conv(
            self.num_classes,
            (1, 1),
            use_bias=True,
            dtype=self.dtype,
            kernel_init=normal,
            name="conv10",
        )
        return nn.relu(conv(x)).mean((1, 2), dtype=jnp.float32)


class ClassMaps(nn.Module):
    """Leaves the map as it is: `ConvClassifier` averages after it has classified each position.

    Attributes:
      dtype: without effect.
    """

    dtype: Any = None

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return x


def squeezenet(parts: Parts, version: str, *, dropout: Rate = 0.5) -> Network:
    """SqueezeNet.

    Global average pooling ('gavp') is that of the class maps, as published.

    Args:
      version: '1.0' or '1.1'.
      dropout: rate before the convolution that classifies.
    """
    conv = parts.conv(use_bias=True)
    average = parts.representation_name == "gavp"
    # See `Fire.attention`.
    norm = parts.norm() if parts.attention and parts.attention.after == "conv" else None
    features = SqueezeNet(
        version=version,
        attention=parts.stages([len(group) for group in VERSIONS[version][2]]),
        fire=parts.block(Fire, conv=conv, norm=norm),
        pool=parts.pool or MaxPool,
        conv=conv,
    )
    return parts.network(features, partial(ConvClassifier, dropout=dropout) if average else Linear)


def _torch_names(version: str) -> TorchNames:
    """conv1 and its ReLU, then a pooling before each group of Fire modules."""
    places, number, fire = [("conv1", 0)], 2, 2
    for group in VERSIONS[version][2]:
        for offset in range(1, len(group) + 1):
            places.append((f"fire{fire}", number + offset))
            fire += 1
        number += len(group) + 1
    return number_layers(places, [("conv10", 1)])


BACKBONES = {
    f"squeezenet{version.replace('.', '_')}": Backbone(
        partial(squeezenet, version=version), _torch_names(version), own={"gavp": ClassMaps}
    )
    for version in VERSIONS
}
