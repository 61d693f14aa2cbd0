"""The frame of every network, and the pieces that all families are built of."""

import traceback
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sop.errors import UsageError
from sop.layers.linear import convolve, kaiming_normal, torch_uniform

Conv = partial(
    nn.Conv,
    use_bias=False,
    kernel_init=kaiming_normal,
    conv_general_dilated_cls=lambda: convolve,
)
BatchNorm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


class Network(nn.Module):
    """features → representation → classifier: images [B,H,W,3] → float32 logits [B,num_classes].

    Attributes:
      features: [B,H,W,3] → [B,H',W',C], called with (images, train).
      representation: [B,H',W',C] → [B,D], called with (features, train).
      classifier: [B,D] → [B,num_classes], called with (representation, train).
      backbone: name in messages.
      image_size: height and width that the network was published for.
      min_size: smallest height and width for which every feature map has a position.

    Raises:
      UsageError: when traced, for images of another rank or of less than `min_size`, and for parts
        that refuse the feature maps they get.
    """

    features: nn.Module
    representation: nn.Module
    classifier: nn.Module
    backbone: str
    image_size: int = 224
    min_size: int = 1

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        if images.ndim != 4:
            raise UsageError(
                f"{self.backbone} takes images [batch, height, width, channels], not an array of "
                f"shape {images.shape}."
            )
        if min(images.shape[1:3]) < self.min_size:
            raise UsageError(
                f"{self.backbone} needs images of at least {self.min_size}×{self.min_size} pixels "
                f"with these options, not {images.shape[1]}×{images.shape[2]}."
            )
        try:
            x = self.representation(self.features(images, train), train)
        except ValueError as error:
            if isinstance(error, UsageError) or not refused_by_a_layer(error):
                raise
            raise UsageError(f"{self.backbone} cannot hold these parts: {error}") from error
        return self.classifier(x, train).astype(jnp.float32)


def refused_by_a_layer(error: ValueError) -> bool:
    """Whether the error was raised, not just passed on, in sop.layers or sop.ops."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].startswith(("sop.layers.", "sop.ops."))


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
