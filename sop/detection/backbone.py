"""What a detector starts from: the maps of a backbone, and how large its images are."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sop.errors import UsageError
from sop.models.features import stages


def last_stages(features: nn.Module, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
    """What the last `count` stages of a backbone put out, finest first: [B, h, w, c] each.

    Raises:
      UsageError: it has fewer.
    """
    found = list(stages(features, images, train).values())
    if len(found) < count:
        raise UsageError(
            f"The backbone has {len(found)} stages; set config.model.detector.base_levels to that "
            "or less."
        )
    return found[-count:]


def whole_sizes(images: jax.Array) -> jax.Array:
    """Height and width of images [B, H, W, 3] without padding: float32 [B, 2]."""
    return jnp.broadcast_to(jnp.array(images.shape[1:3], jnp.float32), (len(images), 2))
