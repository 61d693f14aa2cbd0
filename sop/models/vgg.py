"""VGG (Simonyan & Zisserman 2015, table 1), and the forms of it in GFGP and fast MPN-COV."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax

from sop.checks import Rate, Width
from sop.layers import MaxPool
from sop.models.attention import Stages
from sop.models.backbone import Backbone, TorchNames, number_layers
from sop.models.network import Linear, Network
from sop.models.parts import Parts
from sop.models.plain import ConvLayer, FlatMap, MultilayerClassifier, hidden_widths, normal

WIDTHS = (64, 128, 256, 512, 512)
STAGE_SIZES = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """Five stages of 3×3 convolutions: [B,H,W,3] → [B,H/16,W/16,512], H/32 with `last_pool`.

    Attributes:
      attention: for each stage, the attention of each of its convolutions.
      layer: of one convolution, norm, ReLU.
      pool: at the end of a stage, 2×2/2.
      last_pool: the last stage has one too.
      words: width of a 1×1 convolution at the end (GFGP's VGG-mod); None: there is none.
    """

    attention: Stages
    layer: Callable[..., nn.Module]
    pool: Callable[..., nn.Module]
    last_pool: bool
    words: int | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = images
        for stage, (width, layers) in enumerate(zip(WIDTHS, self.attention, strict=True), 1):
            for index, attention in enumerate(layers, 1):
                name = f"conv{stage}_{index}"
                x = self.layer(width, (3, 3), padding=1, attention=attention, name=name)(x, train)
            if stage < len(WIDTHS) or self.last_pool:
                x = self.pool(window=2, strides=2, name=f"pool{stage}")(x, train)
        return self.layer(self.words, (1, 1), name="conv6")(x, train) if self.words else x


def vgg(
    parts: Parts,
    depth: int,
    batch_norm: bool,
    *,
    hidden: tuple[Width, ...] | None = None,
    dropout: Rate = 0.5,
) -> Network:
    """VGG as torchvision has it, and with a representation in place of its last pooling.

    Args:
      depth: layers with weights.
      batch_norm: a BatchNorm follows each convolution.
      hidden: widths of the fully connected layers before the last; by default (4096, 4096), or none
        with B-CNN and CBP, as in their two-stage fine-tuning.
      dropout: rate after each of these.
    """
    hidden = hidden_widths(parts, hidden)
    conv = parts.conv(use_bias=True)
    norm = parts.norm() if batch_norm else None
    classifier = partial(
        MultilayerClassifier,
        hidden=hidden,
        dropout=(0.0, *(dropout for _ in hidden)),
        # fast MPN-COV puts new Linears in the place of those whose width it changes.
        normal=range(1 if parts.representation_name == "flat" else 2, len(hidden) + 1),
    )
    return _network(parts, depth, conv, norm, classifier if hidden else Linear)


def vgg_gfgp(parts: Parts, depth: int, batch_norm: bool) -> Network:
    """GFGP's VGG: BN (ε = 1e-4) after every convolution and in both hidden fully connected layers.

    Kobayashi, "Global Feature Guided Local Pooling", ICCV 2019, §4.

    Args:
      batch_norm: False leaves out all of these.
    """
    return _network(parts, depth, *_gfgp(parts, (4096, 4096), batch_norm))


def vgg_mod(parts: Parts, depth: int, batch_norm: bool) -> Network:
    """GFGP's VGG-mod: the last pooling gives way to a 1×1 convolution to 4096; global average.

    Kobayashi, "Global Feature Guided Local Pooling", ICCV 2019, §4.

    Args:
      batch_norm: see `vgg_gfgp`.
    """
    return _network(parts, depth, *_gfgp(parts, (4096,), batch_norm), words=4096)


def _gfgp(parts, hidden, batch_norm):
    conv = parts.conv(use_bias=True, kernel_init=normal)
    norm = parts.norm(epsilon=1e-4) if batch_norm else None
    classifier = partial(
        MultilayerClassifier,
        hidden=hidden,
        dropout=(0.0,) * (len(hidden) + 1),
        norm=norm,
        normal=range(1, len(hidden) + 2),
    )
    return conv, norm, classifier


def _network(parts, depth, conv, norm, classifier, words=None):
    pool = parts.pool or MaxPool
    if parts.pool_name == "gfgp":
        pool = partial(pool, kernel_init=normal, bias_init=nn.initializers.zeros)
    features = VGG(
        attention=parts.stages(STAGE_SIZES[depth]),
        layer=parts.block(ConvLayer, conv=conv, norm=norm),
        pool=pool,
        last_pool=parts.representation_name == "flat",
        words=words,
    )
    return parts.network(features, classifier)


def _torch_names(
    depth: int, batch_norm: bool, classifier: tuple[int, int, int] = (0, 3, 6)
) -> TorchNames:
    """conv, norm if any and ReLU count as layers, and so do the poolings and 'conv6' of VGG-mod."""
    places, number = [], 0
    for stage, size in enumerate(STAGE_SIZES[depth], 1):
        for index in range(1, size + 1):
            places.append((f"conv{stage}_{index}/conv", number))
            places.append((f"conv{stage}_{index}/bn", number + 1))
            number += 3 if batch_norm else 2
        places.append((f"pool{stage}", number))
        number += 1
    # In VGG-mod it stands in place of the last pooling.
    places += [("conv6/conv", number - 1), ("conv6/bn", number)]
    first, second, third = classifier
    layers = [("fc1", first), ("bn1", 1), ("fc2", second), ("bn2", 4), ("fc3", third)]
    return number_layers(places, layers)


_FLAT = {"representation": "flat", "own": {"flat": partial(FlatMap, size=7)}}


def _backbones(depth: int) -> dict[str, Backbone]:
    plain, normalized = _torch_names(depth, False), _torch_names(depth, True)
    without_dropout = _torch_names(depth, False, (0, 2, 4))
    gfgp, mod = partial(vgg_gfgp, depth=depth), partial(vgg_mod, depth=depth)
    return {
        f"vgg{depth}": Backbone(partial(vgg, depth=depth, batch_norm=False), plain, **_FLAT),
        f"vgg{depth}_bn": Backbone(partial(vgg, depth=depth, batch_norm=True), normalized, **_FLAT),
        f"vgg{depth}_gfgp": Backbone(partial(gfgp, batch_norm=True), normalized, **_FLAT),
        f"vgg{depth}_mod": Backbone(partial(mod, batch_norm=True), normalized),
        # The two without batch norm, by their names in GFGP's code.
        f"vgg{depth}_orig": Backbone(partial(gfgp, batch_norm=False), without_dropout, **_FLAT),
        f"vgg{depth}_bow": Backbone(partial(mod, batch_norm=False), without_dropout),
    }


BACKBONES = {name: each for depth in STAGE_SIZES for name, each in _backbones(depth).items()}
