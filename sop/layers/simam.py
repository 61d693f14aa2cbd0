"""SimAM, attention without parameters."""

from typing import Annotated, Any, ClassVar

from sop import ops
from sop.checks import above
from sop.layers.gate import Gate, Gates
from sop.layers.published import Published
from sop.ops.annotations import FeatureMap


class SimAM(Gate):
    """SimAM: y = x · σ((x − μ)²/(4(σ² + λ)) + ½), see `sop.ops.simam`.

    Yang et al., "SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural
    Networks", ICML 2021, §3. Its code puts it behind the last 3×3 convolution of a block, before
    the norm; here 'conv' is the convolution that the block names.

    Attributes:
      lam: λ; 1e-4 on CIFAR, 0.1 in the published ImageNet networks.
      dtype: of y; None: that of x. Gates are at least float32.

    Call:
      x: [B, H, W, C], any floating dtype; train: without effect.

    Returns:
      [B, H, W, C] in `dtype`.

    Raises:
      UsageError: x is no feature map, or a field does not fit its annotation.

    >>> import jax
    >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    >>> y, variables = SimAM().init_with_output(jax.random.key(1), x, train=False)
    >>> y.shape, variables
    ((2, 4, 4, 8), {})
    """

    published: ClassVar = Published(after="conv")

    lam: Annotated[float, above(0)] = 1e-4
    dtype: Any = None

    def gate(self, x: FeatureMap, train: bool) -> Gates:
        return ops.simam(x, self.lam)
