"""What attentions of the form x · g(x) have in common."""

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
from jaxtyping import Float

from sop import ops
from sop.layers.arguments import check_call
from sop.ops.annotations import FeatureMap

# Broadcast to a feature map.
Gates = Float[jax.Array, "#b #h #w #c"]


class Gate(nn.Module):
    """x · g(x), a weight for each entry of a feature map.

    Subclasses define `gate(x, train)`, which gets x in at least float32, and a field `dtype`: that
    of y; None: that of x.

    Call:
      x: [B, H, W, C], any floating dtype; train: for batch norms.

    Returns:
      [B, H, W, C] in `dtype`.

    Raises:
      UsageError: x is no feature map, or a field does not fit its annotation.
    """

    if TYPE_CHECKING:
        dtype: Any

    def __call__(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b h w c"]:
        check_call(self, x)
        dtype = self.dtype or x.dtype
        x = ops.at_least_float32(x.astype(dtype))
        return ops.narrow(x * self.gate(x, train), dtype)

    def gate(self, x: FeatureMap, train: bool) -> Gates:
        """The weights, [B or 1, H or 1, W or 1, C or 1]."""
        raise NotImplementedError
