"""ConvNeXt (Liu et al. 2022, §2 and table 9)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from sop.checks import Rate
from sop.errors import UsageError
from sop.models.attention import Attention, Stages, attend
from sop.models.backbone import Backbone, TorchNames
from sop.models.network import Linear, Network
from sop.models.parts import Parts
from sop.models.residual import drop_branch

_normal = nn.initializers.truncated_normal(0.02)


class ConvNeXtBlock(nn.Module):
    """x + γ W₂ GELU(W₁ LN(depthwise 7×7 x)), W₁ to four times the channels: [B,H,W,C] → [B,H,W,C].

    Attributes:
      attention: see `sop.models.attention.attend`.
      conv, dense, norm: factories.
      stochastic_depth, depth: see `sop.models.residual.ResidualBlock`.
    """

    attention: Attention | None
    conv: Callable[..., nn.Module]
    dense: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    stochastic_depth: float = 0.0
    depth: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1]
        y = self.conv(width, (7, 7), padding=3, feature_group_count=width, name="conv_dw")(x)
        y = attend(self.attention, "conv", y, train)
        y = self.dense(4 * width, name="fc1")(self.norm(name="norm")(y))
        y = self.dense(width, name="fc2")(nn.gelu(y, approximate=False))
        gamma = self.param("gamma", nn.initializers.constant(1e-6), (width,))
        y = attend(self.attention, "branch", y * gamma.astype(y.dtype), train)
        return x + drop_branch(y, self.depth * self.stochastic_depth, train)


class ConvNeXt(nn.Module):
    """Stem 4×4/4 and four stages, 2×2/2 before all but the first: [B,H,W,3] → [B,H/32,W/32,C].

    Attributes:
      attention: for each stage, the attention of each of its blocks (None: no attention).
      widths: of the stages; C is the last.
      block: called with (attention=, depth=, name=) → module.
      conv, norm: factories.
    """

    attention: Stages
    widths: tuple[int, ...]
    block: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = self.conv(self.widths[0], (4, 4), 4, padding="VALID", name="stem_conv")(images)
        x = self.norm(name="stem_norm")(x)
        count, done = sum(map(len, self.attention)), 0
        for stage, (width, attentions) in enumerate(zip(self.widths, self.attention, strict=True)):
            if stage:
                x = self.norm(name=f"stage{stage}_norm")(x)
                x = self.conv(width, (2, 2), 2, padding="VALID", name=f"stage{stage}_conv")(x)
            for index, attention in enumerate(attentions):
                depth = done / max(count - 1, 1)
                name = f"stage{stage}_{index}"
                x = self.block(attention=attention, depth=depth, name=name)(x, train)
                done += 1
        return x


class NormedLinear(nn.Module):
    """LN, then x Wᵀ + b: [B,D] → [B,num_classes].

    Attributes:
      num_classes: width of the output.
      dtype: compute type.
    """

    num_classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = _norm(self.dtype)(name="norm")(x)
        return _linear(num_classes=self.num_classes, dtype=self.dtype, name="fc")(x, train)


_linear = partial(Linear, kernel_init=_normal, bias_init=nn.initializers.zeros)


def _norm(dtype: Any) -> Callable[..., nn.Module]:
    return partial(nn.LayerNorm, epsilon=1e-6, dtype=dtype, use_fast_variance=False)


def convnext(
    parts: Parts,
    stage_sizes: tuple[int, ...],
    widths: tuple[int, ...],
    *,
    stochastic_depth: Rate = 0.0,
) -> Network:
    """ConvNeXt.

    Global average pooling ('gavp') is followed by a LayerNorm before the classifier, as published;
    other representations are not.

    Args:
      stage_sizes, widths: blocks and channels of each stage.
      stochastic_depth: rate at which the branch of the last block is left out; others less,
        linearly from 0 in the first.
    Raises:
      UsageError: the config puts local pooling into it.
    """
    if parts.pool:
        raise UsageError(
            f"{parts.backbone} goes down by convolutions of its own, in whose place no local "
            "pooling stands: leave out config.model.pool."
        )
    conv, norm = parts.conv(use_bias=True, kernel_init=_normal), _norm(parts.dtype)
    features = ConvNeXt(
        attention=parts.stages(stage_sizes),
        widths=widths,
        block=parts.block(
            ConvNeXtBlock,
            conv=conv,
            dense=partial(nn.Dense, kernel_init=_normal, dtype=parts.dtype),
            norm=norm,
            stochastic_depth=stochastic_depth,
        ),
        conv=conv,
        norm=norm,
    )
    published = parts.representation_name == "gavp"
    return parts.network(features, NormedLinear if published else _linear)


TORCH_NAMES = TorchNames(
    names=(
        (r"^features/stem_conv\b", "stem.0"),
        (r"^features/stem_norm\b", "stem.1"),
        (r"^features/stage(\d)_norm\b", r"stages.\1.downsample.0"),
        (r"^features/stage(\d)_conv\b", r"stages.\1.downsample.1"),
        (r"^features/stage(\d)_(\d+)", r"stages.\1.blocks.\2"),
        (r"/(fc\d)/", r".mlp.\1/"),
        (r"^classifier/(norm|fc)\b", r"head.\1"),
        (r"^classifier\b", "head.fc"),
    )
)
BACKBONES = {
    "convnext_tiny": Backbone(
        partial(convnext, stage_sizes=(3, 3, 9, 3), widths=(96, 192, 384, 768)), TORCH_NAMES
    )
}
