"""Pieces of networks without shortcuts: a convolution layer and fully connected classifiers."""

from collections.abc import Callable, Collection
from typing import Any

import flax.linen as nn
import jax

from sop import ops
from sop.models.attention import Attention, attend
from sop.models.network import Linear
from sop.models.parts import Parts

normal = nn.initializers.normal(0.01)
# U(−1/√fan_in, 1/√fan_in), PyTorch's default for a kernel, whose shape tells the fan-in.
torch_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def hidden_widths(parts: Parts, hidden: tuple[int, ...] | None) -> tuple[int, ...]:
    """Widths of the fully connected layers before the last, as published if None.

    That is (4096, 4096), but none with B-CNN and CBP, as in their two-stage fine-tuning.
    """
    if hidden is None:
        linear = parts.representation_name in ("bcnn", "compact_bilinear")
        return () if linear else (4096, 4096)
    return tuple(hidden)


class ConvLayer(nn.Module):
    """Convolution, norm if any, ReLU: [B,H,W,C] → [B,H',W',features].

    Attributes:
      features: channels of the output.
      kernel_size, strides, padding: of the convolution.
      attention: see `sop.models.attention.attend`; 'branch' stands before the ReLU.
      conv, norm: factories; no norm if None.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int = 1
    padding: Any = 0
    attention: Attention | None = None
    conv: Callable[..., nn.Module] = nn.Conv
    norm: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.conv(
            self.features, self.kernel_size, self.strides, padding=self.padding, name="conv"
        )(x)
        x = attend(self.attention, "conv", x, train)
        if self.norm is not None:
            x = self.norm(name="bn")(x, train)
        return nn.relu(attend(self.attention, "branch", x, train))


class FlatMap(nn.Module):
    """A feature map as one vector, after adaptive average pooling: [B,H,W,C] → [B,C·size²].

    Channel after channel, the order that published weights of the next layer expect.

    Attributes:
      size: height and width after pooling; at this size the map stays as it is.
      dtype: compute type; None: that of the input.
    """

    size: int
    dtype: Any = None

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = ops.adaptive_average_pool(x, (self.size, self.size))
        return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


class MultilayerClassifier(nn.Module):
    """Fully connected layers, each but the last followed by norm, if any, and ReLU.

    [B,D] → [B,num_classes], called with (x, train).

    Attributes:
      num_classes: width of the last layer.
      hidden: widths of the others.
      dropout: rate before each layer.
      norm: factory; no norm if None.
      normal: which layers, from 1, start from N(0, 0.01²) and b = 0; the others from
        U(−1/√D, 1/√D), as PyTorch's Linear.
      dtype: compute type.
    """

    num_classes: int
    hidden: tuple[int, ...]
    dropout: tuple[float, ...]
    norm: Callable[..., nn.Module] | None = None
    normal: Collection[int] = ()
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        widths = (*self.hidden, self.num_classes)
        for layer, (width, dropout) in enumerate(zip(widths, self.dropout, strict=True), 1):
            inits = (normal, nn.initializers.zeros) if layer in self.normal else (None, None)
            x = Linear(width, dropout, *inits, self.dtype, name=f"fc{layer}")(x, train)
            if layer < len(widths):
                if self.norm is not None:
                    x = self.norm(name=f"bn{layer}")(x, train)
                x = nn.relu(x)
        return x
