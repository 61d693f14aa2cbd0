"""Representations: a network's last feature map to one vector per image."""

from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sop import ops
from sop.checks import NotNegative, Rate, above, at_most, within
from sop.layers.arguments import check_call
from sop.layers.linear import KERNELS, PointwiseConv
from sop.layers.norm import BatchNorm
from sop.layers.published import Published
from sop.ops.annotations import FeatureMap
from sop.ops.arguments import Iterations


class GlobalAverage(nn.Module):
    """Global average pooling, y = (1/n) Σᵢ xᵢ over the n = H·W positions (GAvP).

    Attributes:
      dtype: compute type of x; None: that of x. The sum is float32.

    Call:
      x: [B, H, W, C], any floating dtype; train: without effect.

    Returns:
      [B, C], float32.

    Raises:
      UsageError: x is no feature map.

    >>> y, _ = GlobalAverage().init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 8)), False)
    >>> y.shape
    (2, 8)
    """

    dtype: Any = None

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b c"]:
        check_call(self, x)
        x = ops.widen(x.astype(self.dtype or x.dtype))
        return x.mean((1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


class MPNCOV(nn.Module):
    """Matrix-power-normalised covariance pooling: MPN-COV and its fast form iSQRT-COV.

    x → optionally ReLU(BN(W x)), a 1×1 convolution without bias to d channels → covariance
    Σ = (1/n) Σᵢ (xᵢ−x̄)(xᵢ−x̄)ᵀ → normalisation → upper triangle, row by row → dropout.
    'newton_schulz': N coupled iterations towards Σ^½, scaled by the trace before and after (Li et
    al., "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square
    Root Normalization", CVPR 2018, §3.2). 'eigh': Σ^α by eigendecomposition (Li et al., "Is
    Second-order Information Helpful for Large-scale Visual Recognition?", ICCV 2017, §3).
    'none': Σ itself.

    Attributes:
      reduction: d; None or 0: no reduction, d = C.
      num_iters: N of 'newton_schulz'; 5 in fast MPN-COV, 3 in GSoP-Net2.
      normalization: which of the three.
      alpha: α of 'eigh', above 0.
      initialization: of W: 'he', normal by fan-out, in PyTorch code; 'lecun', cut-off normal by
        fan-in, in TensorFlow code; 'glorot', uniform.
      vectorize: False returns the whole matrix.
      dropout: rate, drawn from the stream 'dropout' in training.
      dtype: compute type of the reduction's products; None: that of x. The rest is float32.
      axis_name: mapped axis that BN statistics are averaged over.

    Call:
      x: [B, H, W, C], any floating dtype; train: whether BN uses and updates batch statistics and
      dropout drops.

    Returns:
      [B, d(d+1)/2], or [B, d, d] without `vectorize`; float32.

    Raises:
      UsageError: x is no feature map, or an option makes no sense.

    >>> x = jnp.ones((2, 4, 4, 32))
    >>> y, _ = MPNCOV(reduction=8).init_with_output(jax.random.key(0), x, train=False)
    >>> y.shape
    (2, 36)
    """

    published: ClassVar = Published(last_stride=1, attention_in_last_stage=False)
    torch_names: ClassVar = (
        (r"\brepresentation/reduce\b", "representation.conv_dr_block.0"),
        (r"\brepresentation/reduce_norm\b", "representation.conv_dr_block.1"),
    )

    reduction: Annotated[int, within(0, 4096)] | None = None
    num_iters: Iterations = 5
    normalization: Literal["newton_schulz", "eigh", "none"] = "newton_schulz"
    alpha: Annotated[float, above(0), at_most(10)] = 0.5
    initialization: Literal["he", "lecun", "glorot"] = "he"
    vectorize: bool = True
    dropout: Rate = 0.0
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: FeatureMap, train: bool
    ) -> Float[jax.Array, "b d"] | Float[jax.Array, "b d d"]:
        check_call(self, x)
        x = x.astype(self.dtype or x.dtype)
        if self.reduction:
            reduce = partial(PointwiseConv, kernel_init=KERNELS[self.initialization], name="reduce")
            x = reduce(self.reduction, use_bias=False, dtype=self.dtype)(x)
            x = nn.relu(BatchNorm(axis_name=self.axis_name, name="reduce_norm")(x, train))
        if self.normalization == "newton_schulz" and self.vectorize:
            y = ops.isqrt_cov(x, self.num_iters)
        else:
            y = self._normalized(x)
            y = ops.upper_triangle(y) if self.vectorize else y
        return nn.Dropout(self.dropout, deterministic=not train)(y)

    def _normalized(self, x):
        if self.normalization == "none":
            return ops.covariance(x)
        # A root may be in range where the covariance is not: (Σ/s²)^α s^2α for a power of two s.
        x = ops.at_least_float32(x)
        size = ops.magnitude(x, (1, 2, 3))
        covariance = ops.covariance(x / size)
        size = size[:, :, :, 0]
        if self.normalization == "newton_schulz":
            return ops.matrix_sqrt(covariance, self.num_iters) * size
        return ops.matrix_power(covariance, self.alpha) * size ** (2 * self.alpha)


class BilinearCNN(nn.Module):
    """Bilinear pooling (B-CNN): Y = (1/n) Σᵢ xᵢxᵢᵀ, signed square root, ℓ₂-normalised.

    sign(Y)·√(|Y| + 1e-8) elementwise, flattened, divided by its norm.
    Lin et al., "Bilinear CNN Models for Fine-grained Visual Recognition", ICCV 2015, §2.

    Attributes:
      vectorize: False keeps the matrix and normalises its columns, as the original's option does.
      dtype: compute type of x; None: that of x. Sums and roots are float32.

    Call:
      x: [B, H, W, C], any floating dtype; train: without effect.

    Returns:
      [B, C²], or [B, C, C] without `vectorize`; float32.

    Raises:
      UsageError: x is no feature map.

    >>> y, _ = BilinearCNN().init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 8)), False)
    >>> y.shape
    (2, 64)
    """

    vectorize: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: FeatureMap, train: bool
    ) -> Float[jax.Array, "b c*c"] | Float[jax.Array, "b c c"]:
        check_call(self, x)
        return ops.bilinear(x.astype(self.dtype or x.dtype), self.vectorize)


class CompactBilinear(nn.Module):
    """Compact bilinear pooling by tensor sketch, signed square root, ℓ₂-normalised.

    Each position gives the circular convolution of two count sketches of x, which is a sketch of
    xxᵀ; they are summed. The random hashes and signs stand in the collection 'constants', so that
    a checkpoint carries them and a converted one keeps the original's.
    Gao et al., "Compact Bilinear Pooling", CVPR 2016, algorithm 2.

    Attributes:
      projected_dim: D, 8192 as published.
      seed: that the hashes are drawn from when variables are initialised.
      dtype: compute type of x; None: that of x. The sketch is float32.

    Call:
      x: [B, H, W, C], any floating dtype; train: without effect.

    Returns:
      [B, D], float32.

    Raises:
      UsageError: x is no feature map, projected_dim no positive integer, or seed negative.

    >>> module = CompactBilinear(projected_dim=64)
    >>> y, variables = module.init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 8)), False)
    >>> y.shape, sorted(variables["constants"])
    ((2, 64), ['hash_1', 'hash_2', 'sign_1', 'sign_2'])
    """

    projected_dim: Annotated[int, within(1, 2**20)] = 8192
    seed: NotNegative = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b d"]:
        check_call(self, x)
        names = ("hash_1", "sign_1", "hash_2", "sign_2")
        drawn = ops.tensor_sketch_hashes(self.seed, x.shape[-1], self.projected_dim)
        hashes = [
            self.variable("constants", name, lambda value=value: jnp.asarray(value)).value
            for name, value in zip(names, drawn, strict=True)
        ]
        hash_1, sign_1, hash_2, sign_2 = hashes
        x = x.astype(self.dtype or x.dtype)
        return ops.compact_bilinear(x, hash_1, sign_1, hash_2, sign_2, self.projected_dim)

    def published_constants(self, channels: int) -> dict[str, np.ndarray]:
        """The hashes and signs of the original, 'hash_1' … 'sign_2', [channels] each.

        It draws them by `torch.randint` after `torch.manual_seed(1)`: successive outputs of the
        Mersenne twister modulo the range, both hashes first, then both signs.
        """
        twister = np.random.RandomState(1)
        hash_1, hash_2, sign_1, sign_2 = twister.randint(0, 2**32, (4, channels), dtype=np.uint32)
        return {
            "hash_1": (hash_1 % self.projected_dim).astype(np.int32),
            "hash_2": (hash_2 % self.projected_dim).astype(np.int32),
            "sign_1": (sign_1 % 2 * 2.0 - 1.0).astype(np.float32),
            "sign_2": (sign_2 % 2 * 2.0 - 1.0).astype(np.float32),
        }
