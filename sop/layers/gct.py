"""Gated channel transformation."""

from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from sop import ops
from sop.checks import above
from sop.layers.gate import Gate, Gates
from sop.layers.published import Published
from sop.ops.annotations import FeatureMap


class GCT(Gate):
    """Gated channel transformation: y = x · (1 + tanh(γ s/√(mean of s² over channels + ε) + β)).

    s = α √(Σ x² over positions + ε). α starts as ones, γ and β as zeros: the identity.
    Yang et al., "Gated Channel Transformation for Visual Recognition", CVPR 2020, §3. It was
    published in front of every convolution; here it stands where an attention stands in a block.

    Attributes:
      epsilon: ε.
      dtype: of y; None: that of x. Gates are at least float32.

    Call:
      x: [B, H, W, C], any floating dtype; train: without effect.

    Returns:
      [B, H, W, C] in `dtype`.

    Raises:
      UsageError: x is no feature map, or a field does not fit its annotation.

    >>> import jax
    >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    >>> y, _ = GCT().init_with_output(jax.random.key(1), x, train=False)
    >>> bool(jnp.all(y == x))
    True
    """

    published: ClassVar = Published(after="conv")
    torch_names: ClassVar = ((r"\battention/", "attention."),)

    epsilon: Annotated[float, above(0)] = 1e-5
    dtype: Any = None

    @nn.compact
    def gate(self, x: FeatureMap, train: bool) -> Gates:
        shape = x.shape[-1:]
        alpha = self.param("alpha", nn.initializers.ones, shape)
        gamma = self.param("gamma", nn.initializers.zeros, shape)
        beta = self.param("beta", nn.initializers.zeros, shape)
        s = alpha * self._root(x, (1, 2), jnp.sum)
        return 1 + jnp.tanh(gamma * s / self._root(s, 3, jnp.mean) + beta)

    def _root(self, x: FeatureMap, axis, reduce) -> Gates:
        """√(reduce(x²) + ε), of values whose squares may be out of range."""
        size = ops.magnitude(x, axis)
        squares = jnp.square(x / size)
        return size * jnp.sqrt(reduce(squares, axis, keepdims=True) + self.epsilon / size / size)
