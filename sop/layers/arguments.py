"""What every layer checks when it is traced: its fields and its input."""

import flax.linen as nn
import jax.numpy as jnp

from sop.checks import check_fields
from sop.errors import UsageError
from sop.ops.annotations import Array


def check_call(layer: nn.Module, x: Array, tokens: bool = False) -> None:
    """Refuses fields that do not fit their annotations, and an x that is no feature map.

    Args:
      tokens: whether x may be tokens [B, n, C].
    Raises:
      UsageError: also where x is not [B, H, W, C] of floats, with each of them at least 1.
    """
    check_fields(layer)
    kind = type(layer).__name__
    if x.ndim != 4 and not (tokens and x.ndim == 3):
        wanted = "a feature map [B, H, W, C]" + (" or tokens [B, n, C]" if tokens else "")
        raise UsageError(f"{kind} got x of shape {x.shape}: give {wanted}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UsageError(f"{kind} got x of dtype {x.dtype}: cast it to a floating type.")
    if 0 in x.shape[1:]:
        raise UsageError(f"{kind} got x of shape {x.shape}: every axis must be at least 1.")
