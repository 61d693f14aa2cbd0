"""Bilinear pooling, full and compact."""

from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sop import ops
from sop.checks import NotNegative, within
from sop.layers.representation import Representation, Vectors
from sop.ops.annotations import FeatureMap


class BilinearCNN(Representation):
    """Bilinear pooling (B-CNN): Y = (1/n) Σᵢ xᵢxᵢᵀ, signed square root, ℓ₂-normalised.

    sign(Y)·√(|Y| + 1e-8) elementwise, flattened, divided by its norm.
    Lin et al., "Bilinear CNN Models for Fine-grained Visual Recognition", ICCV 2015, §2.

    Attributes:
      vectorize: False keeps the matrix and normalises its columns, as the original's option does.
      dtype: compute type of x; None: that of x. Sums and roots are float32.

    Call:
      x: [B, H, W, C] or tokens [B, n, C], any floating dtype; train: without effect.

    Returns:
      [B, C²], or [B, C, C] without `vectorize`; float32.

    Raises:
      UsageError: x is neither.

    >>> y, _ = BilinearCNN().init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 8)), False)
    >>> y.shape
    (2, 64)
    """

    vectorize: bool = True
    dtype: Any = None

    @nn.compact
    def represent(self, x: FeatureMap, train: bool) -> Vectors:
        return ops.bilinear(x, self.vectorize)


class CompactBilinear(Representation):
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
      x: [B, H, W, C] or tokens [B, n, C], any floating dtype; train: without effect.

    Returns:
      [B, D], float32.

    Raises:
      UsageError: x is neither, projected_dim no positive integer, or seed negative.

    >>> module = CompactBilinear(projected_dim=64)
    >>> y, variables = module.init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 8)), False)
    >>> y.shape, sorted(variables["constants"])
    ((2, 64), ['hash_1', 'hash_2', 'sign_1', 'sign_2'])
    """

    projected_dim: Annotated[int, within(1, 2**20)] = 8192
    seed: NotNegative = 1
    dtype: Any = None

    @nn.compact
    def represent(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b d"]:
        names = ("hash_1", "sign_1", "hash_2", "sign_2")
        drawn = ops.tensor_sketch_hashes(self.seed, x.shape[-1], self.projected_dim)
        hashes = [
            self.variable("constants", name, lambda value=value: jnp.asarray(value)).value
            for name, value in zip(names, drawn, strict=True)
        ]
        hash_1, sign_1, hash_2, sign_2 = hashes
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
