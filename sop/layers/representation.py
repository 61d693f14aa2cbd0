"""What representations have in common: tokens as well as maps, and the reduction before moments."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
from jaxtyping import Float

from sop.checks import within
from sop.layers.arguments import check_call
from sop.layers.linear import KERNELS, PointwiseConv
from sop.layers.norm import BatchNorm
from sop.layers.published import Published
from sop.ops.annotations import Array, FeatureMap, Tokens

# One vector for each image; a matrix where a representation has an option that keeps it.
Vectors = Float[jax.Array, "b d"] | Float[jax.Array, "b d d"]


class Representation(nn.Module):
    """A network's last features to one vector per image.

    Subclasses define `represent(x, train)`, which gets a map, and a field `dtype`: compute type of
    x; None: that of x.

    Call:
      x: a map [B, H, W, C], or tokens [B, n, C] as a transformer has them, which count as n
        positions; any floating dtype. train: for batch norms and dropout.

    Returns:
      [B, D], at least float32.

    Raises:
      UsageError: x is neither, or a field does not fit its annotation.
    """

    if TYPE_CHECKING:
        dtype: Any

    def __call__(self, x: FeatureMap | Tokens, train: bool) -> Vectors:
        check_call(self, x, tokens=True)
        x = x if x.ndim == 4 else x[:, :, None]
        return self.represent(x.astype(self.dtype or x.dtype), train)

    def represent(self, x: FeatureMap, train: bool) -> Vectors:
        """The vectors of a map [B, H, W, C] in the compute type: what a representation defines."""
        raise NotImplementedError


class Reduced(Representation):
    """A representation that first reduces C channels to d: x → ReLU(BN(W x)), W without bias.

    Subclasses call `reduce` in their `represent`.

    Attributes:
      reduction: d; None or 0: no reduction, d = C.
      initialization: of W: 'he', normal by fan-out, in PyTorch code; 'lecun', cut-off normal by
        fan-in, in TensorFlow code; 'glorot', uniform.
      dtype: compute type of the reduction's products; None: that of x. The rest is float32.
      axis_name: mapped axis that BN statistics are averaged over.
    """

    published: ClassVar = Published(last_stride=1, attention_in_last_stage=False, reduces=True)
    torch_names: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"\brepresentation/reduce\b", "representation.conv_dr_block.0"),
        (r"\brepresentation/reduce_norm\b", "representation.conv_dr_block.1"),
    )

    reduction: Annotated[int, within(0, 4096)] | None = None
    initialization: Literal["he", "lecun", "glorot"] = "he"
    dtype: Any = None
    axis_name: str | None = None

    def reduced(self, x: FeatureMap, train: bool) -> Float[Array, "b h w d"]:
        """x, or ReLU(BN(W x)) with `reduction`; for use in a compact method."""
        if not self.reduction:
            return x
        kernel_init = KERNELS[self.initialization]
        convolve = partial(PointwiseConv, use_bias=False, kernel_init=kernel_init, name="reduce")
        x = convolve(self.reduction, dtype=self.dtype)(x)
        return nn.relu(BatchNorm(axis_name=self.axis_name, name="reduce_norm")(x, train))
