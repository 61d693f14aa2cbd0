"""Covariance pooling: MPN-COV, fast MPN-COV, and other normalisations of the covariance."""

from typing import Annotated, Literal

import flax.linen as nn
import jax.numpy as jnp

from sop import ops
from sop.checks import Rate, above, at_most, within
from sop.layers.representation import Reduced, Vectors
from sop.ops.annotations import FeatureMap
from sop.ops.arguments import Iterations
from sop.ops.precision import Precision


class MPNCOV(Reduced):
    """Matrix-power-normalised covariance pooling: MPN-COV and its fast form iSQRT-COV.

    x → optionally ReLU(BN(W x)), a 1×1 convolution without bias to d channels → covariance
    Σ = (1/n) Σᵢ (xᵢ−x̄)(xᵢ−x̄)ᵀ → normalisation → upper triangle, row by row → dropout.
    'newton_schulz': N coupled iterations towards Σ^½, scaled by the trace before and after (Li et
    al., "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square
    Root Normalization", CVPR 2018, §3.2). 'eigh': Σ^α by eigendecomposition (Li et al., "Is
    Second-order Information Helpful for Large-scale Visual Recognition?", ICCV 2017, §3).
    'pade_lyapunov': Σ^½ by a Padé approximant, whose gradient solves a Lyapunov equation (Song et
    al., "Fast Differentiable Matrix Square Root", ICLR 2022). 'eigh_pade': the name of 'eigh' with
    α = ½ where its gradient has 1/(λᵢ − λⱼ) by Padé approximants (Song et al., "Why Approximate
    Matrix Square Root Outperforms Accurate SVD in Global Covariance Pooling?", ICCV 2021): those
    of 1/(1 − r) are the function itself, and the gradient here is exact for equal eigenvalues too.
    'log': log(Σ + εI), log-Euclidean (Ionescu et al., "Matrix Backpropagation for Deep Networks
    with Structured Layers", ICCV 2015). 'element': sign(Σ) √(|Σ| + 1e-8) of each entry.
    'none': Σ itself.

    Attributes:
      reduction: d; None or 0: no reduction, d = C.
      num_iters: N of 'newton_schulz'; 5 in fast MPN-COV, 3 in GSoP-Net2.
      normalization: which of these.
      alpha: α of 'eigh', above 0.
      epsilon: ε of 'log'.
      initialization: of W: 'he', normal by fan-out, in PyTorch code; 'lecun', cut-off normal by
        fan-in, in TensorFlow code; 'glorot', uniform.
      vectorize: False returns the whole matrix.
      precision: of the products of 'newton_schulz', see `sop.ops.isqrt_cov`.
      dropout: rate, drawn from the stream 'dropout' in training.
      dtype: compute type of the reduction's products; None: that of x. The rest is float32.
      axis_name: mapped axis that BN statistics are averaged over.

    Call:
      x: [B, H, W, C] or tokens [B, n, C], any floating dtype; train: whether BN uses and updates
      batch statistics and dropout drops.

    Returns:
      [B, d(d+1)/2], or [B, d, d] without `vectorize`; float32.

    Raises:
      UsageError: x is neither, or an option makes no sense.

    >>> import jax
    >>> x = jax.numpy.ones((2, 4, 4, 32))
    >>> y, _ = MPNCOV(reduction=8).init_with_output(jax.random.key(0), x, train=False)
    >>> y.shape
    (2, 36)
    """

    num_iters: Iterations = 5
    normalization: Literal[
        "newton_schulz", "eigh", "pade_lyapunov", "eigh_pade", "log", "element", "none"
    ] = "newton_schulz"
    alpha: Annotated[float, above(0), at_most(10)] = 0.5
    epsilon: Annotated[float, within(1e-12, 1e12)] = 1e-3
    precision: Precision = "highest"
    vectorize: bool = True
    dropout: Rate = 0.0

    @nn.compact
    def represent(self, x: FeatureMap, train: bool) -> Vectors:
        x = self.reduced(x, train)
        if self.normalization == "newton_schulz" and self.vectorize:
            y = ops.isqrt_cov(x, self.num_iters, precision=self.precision)
        else:
            y = self._normalized_covariance(x)
            y = ops.upper_triangle(y) if self.vectorize else y
        return nn.Dropout(self.dropout, deterministic=not train)(y)

    def _normalized_covariance(self, x):
        match self.normalization:
            case "none":
                return ops.covariance(x)
            case "pade_lyapunov":
                return ops.sqrt_cov_pade(x)
            case "eigh":
                return ops.power_cov(x, self.alpha)
            case "eigh_pade":
                return ops.power_cov(x, 0.5)
            case "log":
                return ops.log_cov(x, self.epsilon)
        # A root may be in range where the covariance is not.
        sigma, size = ops.scaled_covariance(x)
        if self.normalization == "newton_schulz":
            return size * ops.matrix_sqrt(sigma, self.num_iters, precision=self.precision)
        threshold = jnp.maximum(1e-8 / size / size, jnp.finfo(size.dtype).tiny)
        return size * ops.signed_sqrt(sigma, threshold)  # element
