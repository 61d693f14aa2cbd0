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
from sop.models.alexnet import alexnet
from sop.models.cifar_resnet import cifar_resnet
from sop.models.densenet import densenet
from sop.models.inception import inception_v3
from sop.models.mobilenet import mobilenet
from sop.models.network import Network
from sop.models.parts import Parts, check_options, check_type, given, listed, match
from sop.models.residual import BasicBlock
from sop.models.resnet import resnet
from sop.models.squeezenet import squeezenet
from sop.models.vgg import STAGE_SIZES as VGG_DEPTHS
from sop.models.vgg import vgg, vgg_gfgp, vgg_mod
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
    **{f"vgg{depth}": partial(vgg, depth=depth, batch_norm=False) for depth in VGG_DEPTHS},
    **{f"vgg{depth}_bn": partial(vgg, depth=depth, batch_norm=True) for depth in VGG_DEPTHS},
    **{f"vgg{depth}_gfgp": partial(vgg_gfgp, depth=depth) for depth in VGG_DEPTHS},
    **{f"vgg{depth}_mod": partial(vgg_mod, depth=depth) for depth in VGG_DEPTHS},
    "densenet121": partial(densenet, stage_sizes=(6, 12, 24, 16)),
    "densenet161": partial(densenet, stage_sizes=(6, 12, 36, 24), width=96, growth=48),
    "densenet169": partial(densenet, stage_sizes=(6, 12, 32, 32)),
    "densenet201": partial(densenet, stage_sizes=(6, 12, 48, 32)),
    "mobilenet": mobilenet,
    "squeezenet1_0": partial(squeezenet, version="1.0"),
    "squeezenet1_1": partial(squeezenet, version="1.1"),
    "alexnet": alexnet,
    "inception_v3": inception_v3,
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
    if "backbone" not in config:
        raise UsageError(f"config.model needs a backbone: one of {listed(BACKBONES)}.")
    name = config["backbone"]
    check_type("config.model.backbone", name, str)
    constructor = match(name, BACKBONES)
    if constructor is None:
        raise UsageError(f"There is no backbone '{name}'; there are {listed(BACKBONES)}.")
    options = {key: value for key, value in config.items() if key not in PARTS}
    check_options(f"Backbone '{name}'", constructor, options, extra=PARTS)
    return constructor(Parts.from_config(config, dtype, axis_name), **options)
