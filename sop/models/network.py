"""The frame of every network, and the pieces that all families are built of."""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax

from sop.errors import UsageError
from sop.layers.linear import KERNELS, kaiming_normal, torch_uniform
from sop.ops.platform import convolve
from sop.ops.precision import at_least_float32

Conv = partial(
    nn.Conv, use_bias=False, kernel_init=kaiming_normal, conv_general_dilated_cls=lambda: convolve
)


# Where the kernels of convolutions start from (`KERNELS`).
Initialization = Literal["he", "glorot", "lecun"]


class Network(nn.Module):
    """features → representation → classifier: images [B,H,W,3] → logits [B,num_classes], float32.

    Attributes:
      features: [B,H,W,3] → [B,H',W',C], called with (images, train).
      representation: [B,H',W',C] → [B,D], called with (features, train).
      classifier: [B,D] → [B,num_classes], called with (representation, train).
      backbone: name in messages.
      image_size: height and width that the network was published for.

    Raises:
      UsageError: when traced, for images of another rank or too small, and parts that do not fit.
    """

    features: nn.Module
    representation: nn.Module
    classifier: nn.Module
    backbone: str
    image_size: int = 224

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        if images.ndim != 4:
            raise UsageError(
                f"{self.backbone} takes images [batch, height, width, channels], not an array of "
                f"shape {images.shape}."
            )
        try:
            x = self.features(images, train)
            if 0 in x.shape[1:3]:
                raise UsageError("No position is left in the feature map; give larger images.")
            x = self.classifier(self.representation(x, train), train)
        except UsageError as error:
            height, width = images.shape[1:3]
            raise UsageError(
                f"In {self.backbone} on images of {height}×{width} pixels: {error}"
            ) from error
        return at_least_float32(x)


class Linear(nn.Module):
    """Dropout, then x Wᵀ + b: [B,D] → [B,num_classes].

    Attributes:
      num_classes: width of the output.
      dropout: rate, drawn from the stream 'dropout' in training.
      kernel_init, bias_init: of W and b; None: U(−1/√D, 1/√D), as PyTorch's Linear.
      dtype: compute type.
    """

    num_classes: int
    dropout: float = 0.0
    kernel_init: Any = None
    bias_init: Any = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        if x.ndim != 2:
            raise UsageError(
                f"The representation has shape {x.shape}; choose its options so that it gives the "
                f"classifier one vector per image."
            )
        uniform = torch_uniform(x.shape[-1])
        shape = (x.shape[-1], self.num_classes)
        kernel = self.param("kernel", self.kernel_init or uniform, shape)
        bias = self.param("bias", self.bias_init or uniform, (self.num_classes,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return x @ kernel + bias


def initialized(initialization: Initialization) -> partial:
    """The classifier that goes with an initialisation of the convolutions.

    PyTorch's Linear with 'he', else Keras' Dense: U(−√6/√(D + K), √6/√(D + K)) and b = 0.
    """
    if initialization == "he":
        return partial(Linear)
    return partial(Linear, kernel_init=KERNELS["glorot"], bias_init=nn.initializers.zeros)
