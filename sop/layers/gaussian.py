"""Global Gaussian pooling."""

from typing import Annotated

import flax.linen as nn
import jax
from jaxtyping import Float

from sop import ops
from sop.checks import Rate, within
from sop.layers.representation import Reduced
from sop.ops.annotations import FeatureMap
from sop.ops.arguments import Iterations
from sop.ops.precision import Precision


class GaussianPooling(Reduced):
    """Global Gaussian pooling: the square root of [[Σ + β²μμᵀ, βμ], [βμᵀ, 1]], by iteration.

    x → optionally ReLU(BN(W x)), a 1×1 convolution without bias to d channels → mean μ and
    covariance Σ over positions → N Newton–Schulz iterations towards the root of the embedding,
    scaled by its trace before and after → upper triangle, row by row → dropout.
    Wang et al., "Deep CNNs Meet Global Covariance Pooling: Better Representation and
    Generalization", TPAMI 2021 (arXiv 1904.06836); Wang, Li and Zhang, "G²DeNet: Global Gaussian
    Distribution Embedding Network and Its Application to Visual Recognition", CVPR 2017, §3.

    Attributes:
      reduction, initialization, dtype, axis_name: see `sop.layers.representation.Reduced`.
      num_iters: N.
      beta: β, the weight of the mean.
      precision: see `sop.layers.MPNCOV`.
      dropout: rate, drawn from the stream 'dropout' in training.

    Call:
      x: [B, H, W, C] or tokens [B, n, C], any floating dtype; train: whether BN uses and updates
      batch statistics and dropout drops.

    Returns:
      [B, (d+1)(d+2)/2], float32.

    Raises:
      UsageError: x is neither, or a field does not fit its annotation.

    >>> x = jax.numpy.ones((2, 4, 4, 32))
    >>> y, _ = GaussianPooling(reduction=8).init_with_output(jax.random.key(0), x, train=False)
    >>> y.shape
    (2, 45)
    """

    num_iters: Iterations = 5
    beta: Annotated[float, within(0.0, 1e6)] = 1.0
    precision: Precision = "highest"
    dropout: Rate = 0.0

    @nn.compact
    def represent(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b d"]:
        x = self.reduced(x, train)
        y = ops.isqrt_gaussian(x, self.num_iters, self.beta, precision=self.precision)
        return nn.Dropout(self.dropout, deterministic=not train)(y)
