"""Squeeze-and-excitation."""

from typing import Any, ClassVar

import flax.linen as nn

from sop.checks import Count
from sop.layers.gate import Gate, Gates
from sop.layers.linear import PointwiseConv
from sop.layers.published import Published
from sop.ops.annotations import FeatureMap


class SqueezeExcitation(Gate):
    """Squeeze-and-excitation: y = x · σ(W₂ ReLU(W₁ x̄ + b₁) + b₂), x̄ the mean over positions.

    W₁: C → C/r, W₂: C/r → C, initialised as PyTorch does by default.
    Hu, Shen and Sun, "Squeeze-and-Excitation Networks", CVPR 2018, §3.

    Attributes:
      reduction: r; the inner width is C // r, at least 1.
      dtype: of y; None: that of x. Gates are at least float32.

    Call:
      x: [B, H, W, C], any floating dtype; train: without effect.

    Returns:
      [B, H, W, C] in `dtype`.

    Raises:
      UsageError: x is no feature map, or a field does not fit its annotation.

    >>> import jax
    >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 32))
    >>> y, variables = SqueezeExcitation().init_with_output(jax.random.key(1), x, train=False)
    >>> y.shape, sum(w.size for w in jax.tree.leaves(variables))
    ((2, 4, 4, 32), 162)
    """

    published: ClassVar = Published(after="branch")
    torch_names: ClassVar = (
        (r"\battention/reduce\b", "se.fc1"),
        (r"\battention/expand\b", "se.fc2"),
    )

    reduction: Count = 16
    dtype: Any = None

    @nn.compact
    def gate(self, x: FeatureMap, train: bool) -> Gates:
        channels = x.shape[-1]
        inner = max(1, channels // self.reduction)
        y = x.mean((1, 2), keepdims=True)
        y = nn.relu(PointwiseConv(inner, kernel_init=None, name="reduce")(y))
        return nn.sigmoid(PointwiseConv(channels, kernel_init=None, name="expand")(y))
