"""The maps of a backbone that a detector starts from."""

import flax.linen as nn
import jax

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
