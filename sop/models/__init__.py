"""Networks: features → representation → classifier, put together from a config.

A network file holds the features module of its family, a constructor

    def vgg(parts, layers, batch_norm, *, dropout: Rate = 0.5) -> Network

and `BACKBONES`, which binds the sizes that make each member of the family and says what it is
called in PyTorch (`sop.models.backbone`). The constructor reads what the config puts in from
`parts` (`sop.models.parts.Parts`: `parts.stages(sizes)`, `parts.block(…)`, `parts.pool`,
`parts.conv()`, `parts.norm()`, …) and returns `parts.network(features, …)`; its keyword-only
arguments (`dropout`) are options of config.model. A new network is a new file, and a line in
`BACKBONES` below. Modules are named as in PyTorch, with '_' before a number ('layer1_0',
'downsample_0'). A block places attention with `attend(attention, 'conv', …)` after the convolution
its paper names and `attend(attention, 'branch', …)` at the end of the residual branch (in a plain
network: after the last norm of the stage), and local pooling with
`pool(window=…, strides=…, name=…)(x, train)`.
"""

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from sop.checks import check, check_options, quote
from sop.errors import UsageError, did_you_mean, show
from sop.import_path import is_import_path
from sop.models import (
    alexnet,
    cifar_resnet,
    convnext,
    densenet,
    inception,
    mobilenet,
    resnet,
    squeezenet,
    vgg,
    vit,
    wide_resnet,
)
from sop.models.backbone import Backbone, find_backbone, import_backbone
from sop.models.lookup import configure, given
from sop.models.network import Network
from sop.models.parts import Parts, make_parts
from sop.models.resolution import written_out

BACKBONES = {
    **resnet.BACKBONES,
    **cifar_resnet.BACKBONES,
    **wide_resnet.BACKBONES,
    **vgg.BACKBONES,
    **densenet.BACKBONES,
    **mobilenet.BACKBONES,
    **squeezenet.BACKBONES,
    **alexnet.BACKBONES,
    **inception.BACKBONES,
    **vit.BACKBONES,
    **convnext.BACKBONES,
}

_PARTS = ("backbone", "num_classes", "attention", "pool", "norm", "representation", "detector")


def list_models(pattern: str = "*") -> list[str]:
    """Names of backbones, sorted; '{depth}' in a name stands for a number.

    Args:
      pattern: with `*`, `?` and `[…]` as in file names.

    >>> list_models("squeezenet*")
    ['squeezenet1_0', 'squeezenet1_1']
    """
    return sorted(name for name in BACKBONES if fnmatch.fnmatchcase(name, pattern))


def get_backbone(config: Mapping[str, Any]) -> Backbone:
    """What is known of the backbone of a config.model.

    Raises:
      UsageError: it names none, or one that there is not.
    """
    name = config.get("backbone")
    if name is None:
        raise UsageError(f"config.model needs a backbone: one of {quote(BACKBONES)}.")
    check("config.model.backbone", name, str)
    if is_import_path(name):
        return import_backbone(name)
    backbone = find_backbone(name, BACKBONES)
    if backbone is None:
        hint = did_you_mean(name, BACKBONES)
        raise UsageError(
            f"There is no backbone {show(name)}.{hint} There are {quote(BACKBONES)}, or "
            "'package.module:name' of your own."
        )
    return backbone


def create_model(
    config: Mapping[str, Any],
    *,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    representation_axis: str | None = None,
    remat: bool = False,
) -> Network:
    """The network of a config.model, called as `network.apply(variables, images, train=bool)`.

    Args:
      config: `backbone`, `num_classes`; `attention`, `pool`, `norm`, `representation`, each a name
        or a dict of `name` and its options; further keys are options of the backbone. Missing or
        None: as published.
      dtype: compute type of the activations; parameters are float32.
      axis_name: mapped axis that batch norm's statistics are taken over, if any.
      representation_axis: the same for the representation alone; None: `axis_name`.
      remat: of each block only the input is kept for the backward pass, which computes the inside
        again; the parameters are the same.

    Raises:
      UsageError: for unknown names and options, ill-typed values, and parts that do not fit.
    """
    return _assemble(config, dtype, axis_name, representation_axis, remat)[0]


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.model of a classifier with every option written out: it makes the same network.

    What a method or a network was published with takes the place of what the config leaves open.
    Two configs of one network, spelled differently, resolve to the same.

    Raises:
      UsageError: as `create_model`.
    """
    network, make, parts, options = _assemble(config)
    return written_out(parts, options, make, network)


def _assemble(
    config: Mapping[str, Any],
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    representation_axis: str | None = None,
    remat: bool = False,
) -> tuple[Network, Callable, Parts, dict[str, Any]]:
    """The network of a config.model, the constructor of its backbone, its parts and options."""
    config = given(config)
    backbone = get_backbone(config)
    options = {key: value for key, value in config.items() if key not in _PARTS}
    if isinstance(backbone.make, type):
        context = {"dtype": dtype, "axis_name": axis_name}
        module = configure(
            "backbone", config["backbone"], backbone.make, options, also=_PARTS, **context
        )
        parts = make_parts(config, backbone, dtype, axis_name, representation_axis)
        parts.refuse_what_is_left()
        if parts.attention or parts.pool or remat:
            raise UsageError(
                f"backbone {show(config['backbone'])} is a module of features, into which nothing "
                "else can be put: leave out config.model.attention, config.model.pool and "
                "config.remat, or name a sop.models.backbone.Backbone."
            )
        return parts.network(module()), backbone.make, parts, options
    check_options(f"backbone {show(config['backbone'])}", backbone.make, options, also=_PARTS)
    parts = make_parts(config, backbone, dtype, axis_name, representation_axis, remat)
    network = backbone.make(parts, **options)
    parts.refuse_what_is_left()
    return network, backbone.make, parts, options
