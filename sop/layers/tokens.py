"""Second-order heads of transformers: cross-covariance pooling (SoT) and moment probing."""

from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from sop import ops
from sop.checks import Count, Rate, above, at_most
from sop.errors import UsageError
from sop.layers.linear import Projection, torch_uniform
from sop.layers.norm import LayerNorm
from sop.layers.representation import Representation, Vectors
from sop.ops.annotations import Array, FeatureMap, Tokens
from sop.ops.arguments import Iterations

_SMALLEST_EPSILON = 1e-30


class TokenHead(Representation):
    """A representation that may get a class token in front of the words, the patches' tokens.

    A linear classifier of a class token c with a vector v behind it is a sum of two, W₁c + W₂v + b.
    Subclasses call `split` in their `represent`.

    Attributes:
      class_token: whether the first token is that.
    """

    class_token: bool = False

    def __call__(self, x: FeatureMap | Tokens, train: bool) -> Vectors:
        if self.class_token and (x.ndim != 3 or x.shape[1] < 2):
            raise UsageError(
                f"{type(self).__name__} got x of shape {x.shape}: give tokens [B, 1 + n, C], the "
                "class token first, or set class_token=False where there is none."
            )
        return super().__call__(x, train)

    def split(self, x: FeatureMap) -> tuple[Float[Array, "b c"] | None, Float[Array, "b n c"]]:
        """The class token, None where there is none, and the words."""
        words = x.reshape(len(x), -1, x.shape[-1])
        return (words[:, 0], words[:, 1:]) if self.class_token else (None, words)


class MGCrP(TokenHead):
    """Multi-headed global cross-covariance pooling of tokens, the second-order head of SoT.

    x → W x, to 2h·d channels without bias → for each of h heads the cross-covariance A of two times
    d channels over positions → singular-value power normalisation, U Λ^α Vᵀ, of which the largest
    singular value is found by N steps of power iteration from a learned vector and the others are
    divided as it is, see `sop.ops.singular_value_power` → the matrices' rows one after another →
    dropout. With a class token, that token in front: a linear classifier of both is the sum of one
    of the class token and one of the words, as published.
    Xie, Zeng, Wang, Zhou and Li, "SoT: Delving Deeper into Classification Head for Transformer",
    arXiv 2104.10935 (first "So-ViT: Mind Visual Tokens for Vision Transformer"), §3.

    Parameters are `reduce` W, and `start`, [d], the first vector of each power iteration.

    Attributes:
      class_token: whether the first token is the class token; True by default in vision
        transformers.
      heads: h.
      dim: d; 14, 24 and 38 in the published tiny, small and base networks.
      alpha: α.
      num_iters: N.
      dropout: rate of the pooled entries, drawn from the stream 'dropout' in training.
      dtype: compute type of the products W x; None: that of x. The rest is float32.

    Call:
      x: tokens [B, n, C], with `class_token` [B, 1 + n, C], or a map [B, H, W, C] of n = H·W
      positions; any floating dtype. train: whether dropout drops.

    Returns:
      [B, h·d²], or [B, C + h·d²] with a class token; float32.

    Raises:
      UsageError: x is neither, lacks the class token, or a field does not fit its annotation.

    >>> x = jax.random.normal(jax.random.key(0), (2, 1 + 16, 32))
    >>> y, _ = MGCrP(class_token=True, dim=8).init_with_output(jax.random.key(0), x, train=False)
    >>> y.shape
    (2, 416)
    """

    torch_names: ClassVar = (
        (r"\brepresentation/reduce\b", "representation.wr"),
        (r"\brepresentation/start$", "representation.norm.weight"),
    )

    heads: Count = 6
    dim: Count = 24
    alpha: Annotated[float, above(0), at_most(1)] = 0.5
    num_iters: Iterations = 1
    dropout: Rate = 0.0
    dtype: Any = None

    @nn.compact
    def represent(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b d"]:
        first, words = self.split(x)
        z = Projection(2 * self.heads * self.dim, False, dtype=self.dtype, name="reduce")(words)
        z = z.reshape(*words.shape[:2], 2, self.heads, self.dim)
        # In range whatever the size of x.
        size = ops.magnitude(z, (1, 2, 3, 4))
        z, size = z / size, size[:, 0]
        start = self.param("start", nn.initializers.normal(1.0), (self.dim,), jnp.float32)
        epsilon = jnp.maximum(1e-5 / size ** (2 - 2 * self.alpha), _SMALLEST_EPSILON)
        y = ops.singular_value_power(
            ops.cross_covariance(z[:, :, 0], z[:, :, 1]), start, self.alpha, self.num_iters, epsilon
        )
        y = (y * size ** (2 * self.alpha)).reshape(len(x), -1)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return y if first is None else jnp.concatenate([first.astype(y.dtype), y], 1)


class MomentProbing(TokenHead):
    """First and second moments of tokens, the head of moment probing of a frozen backbone (MHC³).

    x → LN(W x + b) of each of h heads of d channels, one LN for all → cross-covariance of each head
    and the next, h − 1 matrices, with columns divided by their norm → 3×3 convolution at stride 2,
    GELU, and another one, among the h − 1 matrices, without bias and padding → flattened, one
    matrix after another, behind the class token, or behind LN(x̄) where there is none; halved: a
    linear classifier of both is the mean of one of each, as published.
    Gao, Wang, Lin, Zhu, Hu and Zhou, "Tuning Pre-trained Model via Moment Probing", ICCV 2023
    (arXiv 2307.11342), §3. To probe, freeze the backbone: `optimizer.frozen=("^features/",)`.

    Attributes:
      class_token: whether the first token is the class token; True by default in vision
        transformers.
      width: h·d.
      heads: h, at least 2.
      dtype: compute type of the products W x; None: that of x. The rest is float32.

    Call:
      x: tokens [B, n, C], with `class_token` [B, 1 + n, C], or a map [B, H, W, C] of n = H·W
      positions; any floating dtype. train: without effect.

    Returns:
      [B, C + (h − 1)·e²] with e = ((d − 3)//2 − 2)//2 + 1, 31 for d = 128; float32.

    Raises:
      UsageError: x is neither, lacks the class token, a field does not fit its annotation, heads
        do not divide width, or matrices are smaller than 7×7.

    >>> x = jax.random.normal(jax.random.key(0), (2, 1 + 16, 32))
    >>> probe = MomentProbing(class_token=True, width=64)
    >>> y, _ = probe.init_with_output(jax.random.key(0), x, train=False)
    >>> y.shape
    (2, 59)
    """

    torch_names: ClassVar = (
        (r"\brepresentation/proj\b", "head.proj"),
        (r"\brepresentation/ln\b", "head.ln"),
        (r"\brepresentation/conv1\b", "head.downblocks.0.0"),
        (r"\brepresentation/conv2\b", "head.downblocks.0.2"),
        (r"\brepresentation/norm\b", "head.cls_head.norm"),
    )

    width: Count = 512
    heads: Count = 4
    dtype: Any = None

    @nn.compact
    def represent(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b d"]:
        if self.heads < 2 or self.width % self.heads or self.width // self.heads < 7:
            raise UsageError(
                f"MomentProbing has width {self.width} and {self.heads} heads: give at least 2 "
                "heads that divide it, of at least 7 channels each."
            )
        first, words = self.split(x)
        z = Projection(self.width, dtype=self.dtype, name="proj")(words)
        z = z.reshape(*words.shape[:2], self.heads, -1)
        z = LayerNorm(1e-5, name="ln")(z)
        y = ops.unit(ops.cross_covariance(z[:, :, :-1], z[:, :, 1:]), -2)
        y = self._convolution("conv1")(y.transpose(0, 2, 3, 1))
        y = self._convolution("conv2")(nn.gelu(y, approximate=False))
        y = y.transpose(0, 3, 1, 2).reshape(len(x), -1)
        if first is None:
            first = LayerNorm(1e-6, name="norm")(ops.at_least_float32(words).mean(1))
        return 0.5 * jnp.concatenate([first.astype(y.dtype), y], 1)

    def _convolution(self, name):
        count = self.heads - 1
        return nn.Conv(
            count,
            (3, 3),
            2,
            padding="VALID",
            use_bias=False,
            kernel_init=torch_uniform(9 * count),
            precision=jax.lax.Precision.HIGHEST,
            name=name,
        )
