"""Inception-v3 (Szegedy et al. 2016, table 1), without the auxiliary classifier."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from sop.checks import Rate
from sop.errors import UsageError
from sop.layers import MaxPool
from sop.models.attention import Attention, Stages, attend
from sop.models.backbone import Backbone, TorchNames
from sop.models.network import Linear, Network
from sop.models.parts import Parts
from sop.models.plain import ConvLayer

# A branch is a tuple of steps: a convolution (name, channels, height, width), several side by
# side in one tuple, AVERAGE (3×3/1), or POOL (3×3/2).
AVERAGE, POOL = "average", "pool"


def _a(width):
    """Table 1's 3×Inception, figure 5."""
    return (
        (("branch1x1", 64, 1, 1),),
        (("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 5)),
        (("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 3), ("branch3x3dbl_3", 96, 3, 3)),
        (AVERAGE, ("branch_pool", width, 1, 1)),
    )


def _c(width):
    """Table 1's 5×Inception, figure 6, with n = 7."""
    return (
        (("branch1x1", 192, 1, 1),),
        (("branch7x7_1", width, 1, 1), ("branch7x7_2", width, 1, 7), ("branch7x7_3", 192, 7, 1)),
        (
            ("branch7x7dbl_1", width, 1, 1),
            ("branch7x7dbl_2", width, 7, 1),
            ("branch7x7dbl_3", width, 1, 7),
            ("branch7x7dbl_4", width, 7, 1),
            ("branch7x7dbl_5", 192, 1, 7),
        ),
        (AVERAGE, ("branch_pool", 192, 1, 1)),
    )


# Figure 10, on 35×35 and on 17×17.
_B = (
    (("branch3x3", 384, 3, 3),),
    (("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 3), ("branch3x3dbl_3", 96, 3, 3)),
    (POOL,),
)
_D = (
    (("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 3)),
    (
        ("branch7x7x3_1", 192, 1, 1),
        ("branch7x7x3_2", 192, 1, 7),
        ("branch7x7x3_3", 192, 7, 1),
        ("branch7x7x3_4", 192, 3, 3),
    ),
    (POOL,),
)
# Table 1's 2×Inception, figure 7.
_E = (
    (("branch1x1", 320, 1, 1),),
    (("branch3x3_1", 384, 1, 1), (("branch3x3_2a", 384, 1, 3), ("branch3x3_2b", 384, 3, 1))),
    (
        ("branch3x3dbl_1", 448, 1, 1),
        ("branch3x3dbl_2", 384, 3, 3),
        (("branch3x3dbl_3a", 384, 1, 3), ("branch3x3dbl_3b", 384, 3, 1)),
    ),
    (AVERAGE, ("branch_pool", 192, 1, 1)),
)
# (name, channels, kernel size, stride, padding); the name of a pooling alone.
STEM = (
    ("Conv2d_1a_3x3", 32, 3, 2, 0),
    ("Conv2d_2a_3x3", 32, 3, 1, 0),
    ("Conv2d_2b_3x3", 64, 3, 1, 1),
    ("pool1",),
    ("Conv2d_3b_1x1", 80, 1, 1, 0),
    ("Conv2d_4a_3x3", 192, 3, 1, 0),
    ("pool2",),
)
# (name, branches, stride) at each resolution.
STAGES = (
    (("Mixed_5b", _a(32), 1), ("Mixed_5c", _a(64), 1), ("Mixed_5d", _a(64), 1)),
    (
        ("Mixed_6a", _B, 2),
        ("Mixed_6b", _c(128), 1),
        ("Mixed_6c", _c(160), 1),
        ("Mixed_6d", _c(160), 1),
        ("Mixed_6e", _c(192), 1),
    ),
    (("Mixed_7a", _D, 2), ("Mixed_7b", _E, 1), ("Mixed_7c", _E, 1)),
)


class Mixed(nn.Module):
    """Branches side by side, their outputs concatenated: [B,H,W,C] → [B,H',W',C'].

    Attributes:
      branches: see the top of this file.
      strides: 2: the last convolution of each branch has stride 2 and no padding.
      attention: stands on the output.
      layer, pool: factories.
    """

    branches: tuple
    strides: int
    attention: Attention | None
    layer: Callable[..., nn.Module]
    pool: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        outputs = []
        for branch in self.branches:
            y = x
            for step in branch:
                y = self._step(y, step, self.strides if step is branch[-1] else 1, train)
            outputs.append(y)
        x = jnp.concatenate(outputs, -1)
        return (
            x if self.attention is None else attend(self.attention, self.attention.after, x, train)
        )

    def _step(self, x, step, strides, train):
        if step == AVERAGE:
            return nn.avg_pool(x, (3, 3), padding=((1, 1), (1, 1)))
        if step == POOL:
            return self.pool(window=3, strides=strides, name="branch_pool")(x, train)
        if isinstance(step[0], tuple):
            return jnp.concatenate([self._step(x, each, strides, train) for each in step], -1)
        name, width, *size = step
        padding = (0, 0) if strides > 1 else tuple((side // 2, side // 2) for side in size)
        return self.layer(width, tuple(size), strides, padding, name=name)(x, train)


class InceptionV3(nn.Module):
    """Stem and eleven mixed blocks: [B,299,299,3] → [B,8,8,2048].

    Attributes:
      attention: for each resolution, the attention of each mixed block.
      transform_input: images are normalised with ImageNet's mean and deviation, while the network
        wants values from −1 to 1 (torchvision's published weights do).
      block: of mixed blocks.
      layer: of one convolution, norm, ReLU.
      pool: 3×3/2, twice in the stem and in the two blocks that go down.
    """

    attention: Stages
    transform_input: bool
    block: Callable[..., nn.Module]
    layer: Callable[..., nn.Module]
    pool: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = images
        if self.transform_input:
            mean, deviation = jnp.array([(0.485, 0.456, 0.406), (0.229, 0.224, 0.225)], x.dtype)
            x = 2 * (x * deviation + mean) - 1
        for name, *sizes in STEM:
            if sizes:
                width, size, strides, padding = sizes
                x = self.layer(width, (size, size), strides, padding, name=name)(x, train)
            else:
                x = self.pool(window=3, strides=2, name=name)(x, train)
        for blocks, attentions in zip(STAGES, self.attention, strict=True):
            for (name, branches, strides), attention in zip(blocks, attentions, strict=True):
                block = self.block(branches, strides, attention, self.layer, self.pool, name=name)
                x = block(x, train)
        return x


def inception_v3(parts: Parts, *, transform_input: bool = False, dropout: Rate = 0.0) -> Network:
    """Inception-v3. Attention stands on the output of mixed blocks: there is no other place.

    Args:
      transform_input: see `InceptionV3`.
      dropout: rate before the classifier: 0.5 in torchvision, but fast MPN-COV leaves it out.

    Raises:
      UsageError: `attention.after` is not the attention's default, which has no meaning here.
    """
    plan = parts.attention
    if plan is not None and plan.after != plan.published.after:
        raise UsageError(
            f"config.model.attention.after is '{plan.after}', but in inception_v3 attention stands "
            f"on the output of mixed blocks alone; leave it out."
        )
    truncated = nn.initializers.truncated_normal(0.1)
    layer = partial(
        ConvLayer, conv=parts.conv(kernel_init=truncated), norm=parts.norm(epsilon=1e-3)
    )
    features = InceptionV3(
        attention=parts.stages([len(blocks) for blocks in STAGES]),
        transform_input=transform_input,
        block=parts.block(Mixed),
        layer=layer,
        pool=parts.pool or MaxPool,
    )
    return parts.network(features, partial(Linear, dropout=dropout))


_CHILDREN = [step[0] for step in STEM] + [block[0] for stage in STAGES for block in stage]
TORCH_NAMES = TorchNames(
    names=((r"^features/", ""), (r"^classifier\b", "fc")),
    # fast-MPN-COV takes the network apart and numbers its children.
    aliases=(
        *((rf"^features\.{number}\.", f"{name}.") for number, name in enumerate(_CHILDREN)),
        (r"^classifier\.", "fc."),
    ),
    unused=(r"^AuxLogits\.",),
)
BACKBONES = {"inception_v3": Backbone(inception_v3, TORCH_NAMES, image_size=299)}
