"""Frequency channel attention."""

from typing import Any, ClassVar

import flax.linen as nn
import numpy as np

from sop import ops
from sop.checks import Count
from sop.errors import UsageError
from sop.layers.gate import Gate, Gates
from sop.layers.linear import dense
from sop.layers.published import Published
from sop.ops.annotations import FeatureMap

# The sixteen best frequencies on a grid of 7 × 7, in the paper's order ("top16").
_ROWS = np.array([0, 0, 6, 0, 0, 1, 1, 4, 5, 1, 3, 0, 0, 0, 3, 2])
_COLUMNS = np.array([0, 1, 0, 5, 2, 0, 2, 0, 0, 6, 0, 4, 6, 3, 5, 2])
_CELLS = 7
# Sides of the maps that blocks of so many planes see in a ResNet at 224 pixels.
_SIDES = {64: 56, 128: 28, 256: 14, 512: 7}


class FcaNet(Gate):
    """Frequency channel attention: squeeze-and-excitation of cosine coefficients, not of means.

    y = x · σ(W₂ ReLU(W₁ z)), without biases; channel c belongs to group ⌊16c/C⌋, and z[c] is its
    coefficient (`sop.ops.cosine_coefficients`) of that group's frequency. Frequencies are those of
    a 7×7 grid, multiplied by side // 7. Maps of another side are first averaged down or spread.
    Qin et al., "FcaNet: Frequency Channel Attention Networks", ICCV 2021, §3.3.

    Attributes:
      reduction: r; the inner width is C // r, at least 1.
      side: of the map that is transformed; None: 56, 28, 14, 7 in blocks of 64, 128, 256, 512
        planes as published, else 7.
      planes: width of the residual block that this stands in, if any.
      dtype: of y; None: that of x. Gates are at least float32.

    Call:
      x: [B, H, W, C], any floating dtype; train: without effect.

    Returns:
      [B, H, W, C] in `dtype`.

    Raises:
      UsageError: x is no feature map, or a field does not fit its annotation, or C is no
        multiple of 16.

    >>> import jax
    >>> x = jax.random.normal(jax.random.key(0), (2, 7, 7, 32))
    >>> y, _ = FcaNet().init_with_output(jax.random.key(1), x, train=False)
    >>> y.shape
    (2, 7, 7, 32)
    """

    published: ClassVar = Published(after="branch")
    torch_names: ClassVar = (
        (r"\battention/reduce\b", "att.fc.0"),
        (r"\battention/expand\b", "att.fc.2"),
    )

    reduction: Count = 16
    side: Count | None = None
    planes: Count | None = None
    dtype: Any = None

    @nn.compact
    def gate(self, x: FeatureMap, train: bool) -> Gates:
        channels = x.shape[-1]
        if channels % len(_ROWS):
            raise UsageError(
                f"FcaNet got {channels} channels: give a multiple of {len(_ROWS)}, the number of "
                "its frequencies."
            )
        side = self.side or _SIDES.get(self.planes or 0, _CELLS)
        rows, columns = (
            np.repeat(each * (side // _CELLS), channels // len(each)) for each in (_ROWS, _COLUMNS)
        )
        if x.shape[1:3] != (side, side):
            x = ops.adaptive_average_pool(x, (side, side))
        z = ops.cosine_coefficients(x, rows, columns)
        inner = max(1, channels // self.reduction)
        y = nn.relu(dense(inner, channels, use_bias=False, name="reduce")(z))
        y = dense(channels, inner, use_bias=False, name="expand")(y)
        return nn.sigmoid(y)[:, None, None, :]
