"""Global context."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
from jaxtyping import Float

from sop import ops
from sop.checks import Count
from sop.layers.arguments import check_call
from sop.layers.linear import PointwiseConv, kaiming_normal
from sop.layers.norm import LayerNorm
from sop.layers.published import Published
from sop.ops.annotations import FeatureMap


class GlobalContext(nn.Module):
    """Global context block: y = x + W₂ ReLU(LN(W₁ c + b₁)) + b₂ at every position.

    c = Σⱼ aⱼ xⱼ over positions, a = softmax over positions of wᵀxⱼ + b; W₁: C → C/r, LN a layer
    norm of all C/r, W₂: C/r → C. W₂ and b₂ start as zeros, so that the block starts as identity.
    Cao et al., "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", ICCVW
    2019, §3.3.

    Attributes:
      reduction: r; the inner width is C // r, at least 1.
      dtype: of y; None: that of x. The context is at least float32.

    Call:
      x: [B, H, W, C], any floating dtype; train: without effect.

    Returns:
      [B, H, W, C] in `dtype`.

    Raises:
      UsageError: x is no feature map, or reduction no positive integer.

    >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 32))
    >>> y, _ = GlobalContext().init_with_output(jax.random.key(1), x, train=False)
    >>> bool((y == x).all())
    True
    """

    published: ClassVar = Published(after="branch", blocks="all")
    torch_names: ClassVar = (
        (r"\battention/mask\b", "se.conv_attn"),
        (r"\battention/reduce\b", "se.mlp_add.fc1"),
        (r"\battention/norm\b", "se.mlp_add.norm"),
        (r"\battention/expand\b", "se.mlp_add.fc2"),
    )

    reduction: Count = 16
    dtype: Any = None

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b h w c"]:
        check_call(self, x)
        dtype = self.dtype or x.dtype
        x = ops.at_least_float32(x.astype(dtype))
        channels = x.shape[-1]
        inner = max(1, channels // self.reduction)
        logits = PointwiseConv(1, kernel_init=kaiming_normal, name="mask")(x)
        y = (x * nn.softmax(logits, axis=(1, 2))).sum((1, 2))
        y = PointwiseConv(inner, kernel_init=None, name="reduce")(y)
        y = nn.relu(LayerNorm(1e-5, name="norm")(y))
        y = _ZeroPointwise(channels, name="expand")(y)
        return ops.narrow(x + y[:, None, None, :], dtype)


class _ZeroPointwise(nn.Module):
    """y = x W + b, of zeros at first."""

    features: int

    @nn.compact
    def __call__(self, x):
        zeros = nn.initializers.zeros
        kernel = self.param("kernel", zeros, (1, 1, x.shape[-1], self.features), "float32")
        bias = self.param("bias", zeros, (self.features,), "float32")
        return ops.einsum("bc,cd->bd", x, kernel[0, 0]) + bias
