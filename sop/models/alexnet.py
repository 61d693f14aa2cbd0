"""AlexNet in its one-column form (Krizhevsky 2014), and as fast MPN-COV cuts it."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax

from sop.checks import Rate, Width
from sop.layers import MaxPool
from sop.layers.linear import torch_uniform
from sop.models.attention import Stages
from sop.models.backbone import Backbone, number_layers
from sop.models.network import Linear, Network
from sop.models.parts import Parts
from sop.models.plain import ConvLayer, FlatMap, MultilayerClassifier, hidden_widths, torch_kernel

# Channels, kernel size, stride and padding of each convolution, and whether a pooling follows.
LAYERS = (
    (64, 11, 4, 2, True),
    (192, 5, 1, 2, True),
    (384, 3, 1, 1, False),
    (256, 3, 1, 1, False),
    (256, 3, 1, 1, True),
)


class AlexNet(nn.Module):
    """Five convolutions: [B,224,224,3] → [B,13,13,256], [B,6,6,256] with `last_pool`.

    Attributes:
      attention: of each convolution, in one list for each resolution.
      layer: of one convolution and ReLU.
      conv: factory of convolutions.
      pool: 3×3/2 after the first, second and, with `last_pool`, fifth convolution.
      last_pool: see there.
    """

    attention: Stages
    layer: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]
    pool: Callable[..., nn.Module]
    last_pool: bool

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = images
        attention = [each for stage in self.attention for each in stage]
        for index, (width, size, strides, padding, pooled) in enumerate(LAYERS, 1):
            conv = partial(self.conv, bias_init=torch_uniform(size**2 * x.shape[-1]))
            layer = partial(self.layer, conv=conv, attention=attention[index - 1])
            x = layer(width, (size, size), strides, padding, name=f"conv{index}")(x, train)
            if pooled and (index < len(LAYERS) or self.last_pool):
                x = self.pool(window=3, strides=2, name=f"pool{index}")(x, train)
        return x


def alexnet(
    parts: Parts, *, hidden: tuple[Width, ...] | None = None, dropout: Rate = 0.5
) -> Network:
    """AlexNet.

    Args:
      hidden: widths of the fully connected layers before the last; by default (4096, 4096), or none
        with B-CNN and CBP.
      dropout: rate before each of these.
    """
    hidden = hidden_widths(parts, hidden)
    classifier = partial(
        MultilayerClassifier, hidden=hidden, dropout=(*(dropout for _ in hidden), 0.0)
    )
    features = AlexNet(
        attention=parts.stages((1, 1, 3)),
        layer=parts.block(ConvLayer),
        conv=parts.conv(use_bias=True, kernel_init=torch_kernel),
        pool=parts.pool or MaxPool,
        last_pool=parts.representation_name == "flat",
    )
    return parts.network(features, classifier if hidden else Linear)


# conv and ReLU count as layers, and so do the poolings after conv1 and conv2.
TORCH_NAMES = number_layers(
    [(f"conv{i}/conv", number) for i, number in enumerate((0, 3, 6, 8, 10), 1)],
    [("fc1", 1), ("fc2", 4), ("fc3", 6)],
)
BACKBONES = {
    "alexnet": Backbone(
        alexnet, TORCH_NAMES, representation="flat", own={"flat": partial(FlatMap, size=6)}
    )
}
