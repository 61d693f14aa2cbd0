"""Sparse inverse covariance pooling."""

from typing import Annotated

import flax.linen as nn
import jax
from jaxtyping import Float

from sop import ops
from sop.checks import Rate, within
from sop.layers.representation import Reduced
from sop.ops.annotations import FeatureMap


class ISICE(Reduced):
    """Sparse inverse covariance pooling, partial correlations of channels (iSICE).

    x → optionally ReLU(BN(W x)), a 1×1 convolution without bias to d channels → covariance over
    its trace → K − 1 steps of sparse inverse estimation, with inverses by Newton–Schulz → divided
    by the root of the trace → upper triangle, row by row → dropout.
    Rahman et al., "Learning Partial Correlation based Deep Visual Representation for Image
    Classification", CVPR 2023, §3.

    Attributes:
      reduction, initialization, dtype, axis_name: see `sop.layers.representation.Reduced`.
      sparsity: λ, weight of the entries' absolute values.
      step_size: η of the first step; lengths fall linearly to zero.
      num_steps: K.
      dropout: rate, drawn from the stream 'dropout' in training.

    Call:
      x: [B, H, W, C] or tokens [B, n, C], any floating dtype; train: whether BN uses and updates
      batch statistics and dropout drops.

    Returns:
      [B, d(d+1)/2], float32.

    Raises:
      UsageError: x is neither, or a field does not fit its annotation.

    >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 32))
    >>> y, _ = ISICE(reduction=8).init_with_output(jax.random.key(0), x, train=False)
    >>> y.shape
    (2, 36)
    """

    sparsity: Annotated[float, within(0.0, 1e6)] = 0.01
    step_size: Annotated[float, within(0.0, 1e6)] = 1.0
    num_steps: Annotated[int, within(2, 100)] = 5
    dropout: Rate = 0.0

    @nn.compact
    def represent(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b d"]:
        sigma, _ = ops.scaled_covariance(self.reduced(x, train))
        theta = ops.sparse_inverse_covariance(sigma, self.sparsity, self.step_size, self.num_steps)
        return nn.Dropout(self.dropout, deterministic=not train)(ops.upper_triangle(theta))
