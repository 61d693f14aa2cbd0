"""Vision transformers (Dosovitskiy et al. 2021, table 1; Touvron et al. 2021, table 1)."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sop.checks import Rate
from sop.errors import UsageError
from sop.layers.linear import torch_uniform
from sop.models.backbone import Backbone, TorchNames
from sop.models.network import Linear, Network
from sop.models.parts import Parts
from sop.models.residual import drop_branch

_EXPANSION = 4  # of the hidden layer of a block's MLP
_normal = nn.initializers.truncated_normal(0.02)


class SelfAttention(nn.Module):
    """Softmax(q kᵀ/√d) v for each head, with q, k, v and the output by Linears: [B,n,C] → [B,n,C].

    Attributes:
      heads: number of heads, of d = C/heads channels each.
      dense: factory of Linears.
    """

    heads: int
    dense: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, tokens, channels = x.shape
        qkv = self.dense(3 * channels, name="qkv")(x)
        qkv = qkv.reshape(batch, tokens, 3, self.heads, channels // self.heads)
        y = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return self.dense(channels, name="proj")(y.reshape(batch, tokens, channels))


class MLP(nn.Module):
    """W₂ GELU(W₁ x + b₁) + b₂: [B,n,C] → [B,n,C].

    Attributes:
      dense: factory of Linears.
    """

    dense: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.dense(_EXPANSION * x.shape[-1], name="fc1")(x)
        return self.dense(x.shape[-1], name="fc2")(nn.gelu(y, approximate=False))


class Encoder(nn.Module):
    """x ← x + SelfAttention(LN(x)), then x ← x + MLP(LN(x)): [B,n,C] → [B,n,C].

    Attributes:
      heads: of the attention.
      dense, norm: factories.
      stochastic_depth: rate at which each branch is left out, see
        `sop.models.residual.drop_branch`.
    """

    heads: int
    dense: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    stochastic_depth: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = SelfAttention(self.heads, self.dense, name="attn")(self.norm(name="norm1")(x))
        x = x + _Branch(self.stochastic_depth, name="drop1")(y, train)
        y = MLP(self.dense, name="mlp")(self.norm(name="norm2")(x))
        return x + _Branch(self.stochastic_depth, name="drop2")(y, train)


class _Branch(nn.Module):
    """`drop_branch`, which a module can have once."""

    rate: float

    @nn.compact
    def __call__(self, y: jax.Array, train: bool) -> jax.Array:
        return drop_branch(y, self.rate, train)


class PatchEmbedding(nn.Module):
    """The Linear of each patch, row after row: [B,H,W,3] → [B,(H/size)·(W/size),width].

    Attributes:
      width: of the tokens.
      size: height and width of the patches, which tile the image.
      dtype: compute type.
    """

    width: int
    size: int
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        uniform = torch_uniform(3 * self.size**2)
        convolve = nn.Conv(
            self.width,
            (self.size, self.size),
            self.size,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=uniform,
            bias_init=uniform,
            name="proj",
        )
        return convolve(images).reshape(len(images), -1, self.width)


class VisionTransformer(nn.Module):
    """Tokens of patches and a class token through encoders: [B,H,W,3] → [B,H/patch,W/patch,width].

    Attributes:
      width, heads: of the tokens, of each encoder's attention.
      rates: of each encoder, see `Encoder.stochastic_depth`.
      patch: height and width of the patches.
      keeps_class_token: the output is [B, 1 + n, width], the class token and those of n patches;
        else a map of the latter alone.
      dropout: rate after the position embeddings are added.
      encoder: called with (heads=, stochastic_depth=, name=) → module.
      norm: factory, of the last norm.
      dtype: compute type.

    Raises:
      UsageError: patches do not tile the image.
    """

    width: int
    heads: int
    rates: tuple[float, ...]
    patch: int
    keeps_class_token: bool
    dropout: float
    encoder: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        batch, *size, _ = images.shape
        if any(side % self.patch or not side for side in size):
            raise UsageError(f"Height and width must be multiples of {self.patch}.")
        x = PatchEmbedding(self.width, self.patch, self.dtype, name="patch_embed")(images)
        first = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(first, (batch, 1, self.width)).astype(x.dtype), x], 1)
        x = x + self.param("pos_embed", _normal, (1, *x.shape[1:])).astype(x.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for index, rate in enumerate(self.rates):
            encoder = self.encoder(heads=self.heads, stochastic_depth=rate, name=f"blocks_{index}")
            x = encoder(x, train)
        x = self.norm(name="norm")(x)
        if self.keeps_class_token:
            return x
        return x[:, 1:].reshape(batch, *(side // self.patch for side in size), self.width)


class ClassToken(nn.Module):
    """The first of the tokens, as it is: [B,n,C] → [B,C].

    Attributes:
      dtype: without effect.
    """

    class_token: ClassVar = True

    dtype: Any = None

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return x[:, 0]


def resample_positions(embeddings: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Position embeddings for images of another size, as timm resamples them.

    The first, the class token's, stays. The others lie on a square grid and become those of another
    by cubic interpolation, a = −½, which averages where the grid becomes coarser.

    Args:
      embeddings: [1, 1 + n, C].
      shape: (1, 1 + n′, C).
    Raises:
      UsageError: n or n′ is no square number.

    >>> resample_positions(np.ones((1, 5, 2), np.float32), (1, 10, 2)).shape
    (1, 10, 2)
    """
    counts = embeddings.shape[1] - 1, shape[1] - 1
    sides = [math.isqrt(count) for count in counts]
    if [side**2 for side in sides] != list(counts):
        raise UsageError(
            f"Position embeddings of {counts[0]} patches cannot become those of {counts[1]}: only "
            "those of square images are resampled; give square images, or weights of this size."
        )
    first, grid = np.split(np.asarray(embeddings, np.float32), [1], axis=1)
    grid = grid.reshape(1, sides[0], sides[0], shape[2])
    grid = jax.image.resize(grid, (1, sides[1], sides[1], shape[2]), "cubic")
    return np.concatenate([first, np.asarray(grid).reshape(1, -1, shape[2])], 1)


def vit(
    parts: Parts,
    width: int,
    depth: int,
    heads: int,
    patch: int,
    *,
    dropout: Rate = 0.0,
    stochastic_depth: Rate = 0.0,
) -> Network:
    """Vision transformer.

    The representation 'class_token' is the class token after the last norm, as published. One with
    an attribute `class_token` that is true gets all tokens after it, [B, 1 + n, C], the class token
    first; any other those of the patches, as a map. Images have one size, that of the position
    embeddings; weights of another start a run by `resample_positions`.

    Args:
      width, depth, heads: of the tokens, encoders and attention.
      patch: height and width of the patches.
      dropout: rate after the position embeddings are added.
      stochastic_depth: rate at which branches of the last encoder are left out; others less,
        linearly from 0 in the first.
    Raises:
      UsageError: the config puts attention or local pooling into it.
    """
    if parts.attention or parts.pool:
        raise UsageError(
            f"{parts.backbone} has no convolutions beside which attention or local pooling could "
            "stand: leave out config.model.attention and config.model.pool."
        )
    norm = partial(nn.LayerNorm, epsilon=1e-6, dtype=parts.dtype, use_fast_variance=False)
    dense = partial(nn.Dense, kernel_init=_normal, dtype=parts.dtype)
    features = VisionTransformer(
        width=width,
        heads=heads,
        rates=tuple(stochastic_depth * i / max(depth - 1, 1) for i in range(depth)),
        patch=patch,
        keeps_class_token=getattr(parts.representation, "class_token", False),
        dropout=dropout,
        encoder=parts.block(Encoder, dense=dense, norm=norm),
        norm=norm,
        dtype=parts.dtype,
    )
    return parts.network(
        features, partial(Linear, kernel_init=_normal, bias_init=nn.initializers.zeros)
    )


TORCH_NAMES = TorchNames(
    names=(
        (r"^features/", ""),
        (r"^classifier\b", "head"),
        (r"^blocks_(\d+)", r"blocks.\1"),
    ),
)


def _backbone(width: int, heads: int, dim: int, dropout: float = 0.0) -> Backbone:
    return Backbone(
        partial(vit, width=width, depth=12, heads=heads, patch=16),
        TORCH_NAMES,
        published={
            "mgcrp": {"class_token": True, "dim": dim, "dropout": dropout},
            "moment_probing": {"class_token": True},
        },
        reduction=128,
        representation="class_token",
        own={"class_token": ClassToken},
        resampled={"pos_embed": resample_positions},
    )


BACKBONES = {
    "vit_tiny_patch16": _backbone(192, 3, 14),
    "vit_small_patch16": _backbone(384, 6, 24, 0.5),
    "vit_base_patch16": _backbone(768, 12, 38, 0.7),
}
