"""Representations of the first order: averages and maxima of each channel."""

from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from sop import ops
from sop.checks import Width, above, within
from sop.layers.linear import PointwiseConv
from sop.layers.representation import Representation
from sop.ops.annotations import FeatureMap


class GlobalAverage(Representation):
    """Global average pooling, y = (1/n) Σᵢ xᵢ over the n = H·W positions (GAvP).

    Attributes:
      hidden: m, width of a hidden layer before the classifier, ReLU(W y + b) with W: C → m, so
        that average pooling meets second-order pooling with as many parameters; None: none.
      dtype: compute type of x; None: that of x. The sum is float32.

    Call:
      x: [B, H, W, C] or tokens [B, n, C], any floating dtype; train: without effect.

    Returns:
      [B, C], or [B, m] with `hidden`; float32.

    Raises:
      UsageError: x is neither, or hidden no width.

    >>> y, _ = GlobalAverage().init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 8)), False)
    >>> y.shape
    (2, 8)
    """

    hidden: Width | None = None
    dtype: Any = None

    @nn.compact
    def represent(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b d"]:
        x = ops.widen(x)
        y = x.mean((1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        if self.hidden is None:
            return y
        return nn.relu(PointwiseConv(self.hidden, kernel_init=None, name="hidden")(y))


class GlobalMax(Representation):
    """Global maximum pooling, y = maxᵢ xᵢ over the positions of each channel (MAC).

    Where several positions have the maximum, its gradient goes to the first, row by row.

    Attributes:
      dtype: compute type of x; None: that of x.

    Call:
      x: [B, H, W, C] or tokens [B, n, C], any floating dtype; train: without effect.

    Returns:
      [B, C], float32.

    Raises:
      UsageError: x is neither.

    >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    >>> GlobalMax().apply({}, x, train=False).tolist()
    [[3.0]]
    """

    dtype: Any = None

    @nn.compact
    def represent(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b c"]:
        return ops.first_maximum(ops.at_least_float32(x), (1, 2))


class GeneralizedMean(Representation):
    """Generalised-mean pooling, y = ((1/n) Σᵢ max(xᵢ, ε)ᵖ)^(1/p) of each channel (GeM).

    p = 1 is average, p → ∞ maximum pooling.
    Radenović, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI
    2019, §3.2.

    Attributes:
      power: p, or what it starts from.
      learned: 'constant' makes p one parameter, 'channel' one for each channel; None: fixed.
      epsilon: ε.
      dtype: compute type of x; None: that of x. Powers and sums are float32.

    Call:
      x: [B, H, W, C] or tokens [B, n, C], any floating dtype; train: without effect.

    Returns:
      [B, C], float32.

    Raises:
      UsageError: x is neither, or a field does not fit its annotation.

    >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    >>> y, variables = GeneralizedMean().init_with_output(jax.random.key(0), x, train=False)
    >>> y, variables["params"]["power"].tolist()
    (Array([[2.0800838]], dtype=float32), [3.0])
    """

    torch_names: ClassVar = ((r"\brepresentation/power\b", "representation.p"),)

    power: Annotated[float, within(-1e3, 1e3)] = 3.0
    learned: Literal[None, "constant", "channel"] = "constant"
    epsilon: Annotated[float, above(0)] = 1e-6
    dtype: Any = None

    @nn.compact
    def represent(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b c"]:
        power = jnp.asarray(self.power, jnp.float32)
        if self.learned is not None:
            size = 1 if self.learned == "constant" else x.shape[-1]
            power = self.param("power", nn.initializers.constant(self.power), (size,), jnp.float32)
        return ops.generalized_mean(x, power, self.epsilon)
