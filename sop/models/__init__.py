"""Networks: features → representation → classifier, put together from a config.

A network file holds the features module of its family and a constructor

    def vgg(parts, layers, batch_norm, *, dropout: float | None = None) -> Network

which reads what the config puts in from `parts` (`sop.models.parts.Parts`: `parts.attention`,
`parts.blocks(stage_sizes)`, `parts.pool`, `parts.dtype`, …), fills in what was published as the
default, and returns `parts.network(features, …)`. `BACKBONES` binds the sizes that make a member
of the family; keyword-only arguments (`dropout`) are options of config.model.
Modules are named as in PyTorch, with '_' before a number ('layer1_0', 'downsample_0'), so that
`sop.torch_weights` needs few rules. A block places attention with `attend(attention, 'conv', …)`
after the convolution its paper names and `attend(attention, 'branch', …)` at the end of the
residual branch (in a plain network: after the last norm of the stage), and local pooling with
`pool(window=…, strides=…, padding=…, name=…)(x, train)`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp

from sop.errors import UsageError
from sop.models.cifar_resnet import cifar_resnet
from sop.models.network import Network
from sop.models.parts import Parts, check_options, check_type, given, listed, match
from sop.models.residual import BasicBlock
from sop.models.resnet import resnet
from sop.models.wide_resnet import wide_resnet

BACKBONES = {
    "resnet18": partial(resnet, stage_sizes=(2, 2, 2, 2), block=BasicBlock),
    "resnet34": partial(resnet, stage_sizes=(3, 4, 6, 3), block=BasicBlock),
    "resnet50": partial(resnet, stage_sizes=(3, 4, 6, 3)),
    "resnet101": partial(resnet, stage_sizes=(3, 4, 23, 3)),
    "resnet152": partial(resnet, stage_sizes=(3, 8, 36, 3)),
    "resnext50_32x4d": partial(resnet, stage_sizes=(3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x8d": partial(resnet, stage_sizes=(3, 4, 23, 3), groups=32, group_width=8),
    "resnet{depth}_cifar": partial(cifar_resnet, preactivation=False),
    "preresnet{depth}_cifar": partial(cifar_resnet, preactivation=True),
    "wrn{depth}_{widening}_cifar": wide_resnet,
}

PARTS = ("backbone", "num_classes", "attention", "pool", "representation")


def create_model(
    config: Mapping[str, Any], *, dtype: Any = jnp.float32, axis_name: str | None = None
) -> Network:
    """The network of a config.model, called as `network.apply(variables, images, train=bool)`.

    Args:
      config: `backbone`, `num_classes`; `attention`, `pool`, `representation`, each a name or a
        dict of `name` and its options; further keys are options of the backbone. Missing or None:
        as published.
      dtype: compute type of the activations; parameters are float32.
      axis_name: mapped axis that BatchNorm statistics are averaged over, if any.

    Raises:
      UsageError: for unknown names and options, ill-typed values, and parts that do not fit.
    """
    config = given(config)
    name = config.get("backbone")
    check_type("config.model.backbone", name, str)
    constructor = match(name, BACKBONES)
    if constructor is None:
        raise UsageError(f"There is no backbone '{name}'; there are {listed(BACKBONES)}.")
    options = {key: value for key, value in config.items() if key not in PARTS}
    check_options(f"Backbone '{name}'", constructor, options, extra=PARTS)
    return constructor(Parts.from_config(config, dtype, axis_name), **options)
