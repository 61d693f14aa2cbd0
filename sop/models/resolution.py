"""A config.model with everything written out that it leaves to defaults and publications."""

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from sop.checks import options_of
from sop.models.attention import Stages
from sop.models.lookup import RESERVED
from sop.models.network import Network
from sop.models.parts import WINDOW, Parts


def written_out(
    parts: Parts, options: Mapping[str, Any], make: Callable[..., Network], network: Network
) -> dict[str, Any]:
    """The config.model that makes this very network whatever the defaults are.

    Args:
      parts: what `make` was given.
      options: of the backbone, as the config has them.
      make: see `sop.models.backbone.Backbone`.
      network: what it returned; tells what it made of options that are None.
    """
    return {
        "backbone": parts.backbone,
        "num_classes": parts.num_classes,
        **_backbone_options(make, options, network),
        "attention": _attention(parts, network),
        "pool": {"name": parts.pool_name, **chosen_options(parts.pool, hidden=WINDOW)},
        **_norm(parts),
        "representation": {
            "name": parts.representation_name,
            **_values(parts.representation, type(parts.representation)),
        },
    }


def _backbone_options(make, options, network) -> dict[str, Any]:
    bound, parameters = _bound(make), inspect.signature(_innermost(make)).parameters
    found = {}
    for name in options_of(make):
        value = options.get(name, bound.get(name, parameters[name].default))
        if value is None:
            holders = (network.features, network.classifier)
            value = next((getattr(each, name) for each in holders if hasattr(each, name)), None)
        found[name] = value
    return {name: value for name, value in found.items() if _is_plain(value)}


def _norm(parts) -> dict[str, Any]:
    if parts.norm_name is None:  # batch norms, with each network's own options
        return {}
    return {"norm": {"name": parts.norm_name, **chosen_options(parts.normalize)}}


def _attention(parts, network) -> dict[str, Any]:
    plan = parts.attention
    if plan is None:
        return {"name": "none"}
    blocks = _words(getattr(network.features, "attention", ())) or plan.blocks
    return {"name": plan.name, "after": plan.after, "blocks": blocks, **chosen_options(plan.make)}


def _words(stages: Stages) -> str:
    return " ".join("".join(each.symbol if each else "0" for each in stage) for stage in stages)


def _bound(make: Callable | None) -> dict[str, Any]:
    """The arguments that `functools.partial` has fixed, the outermost first."""
    bound: dict[str, Any] = {}
    while isinstance(make, functools.partial):
        bound, make = {**make.keywords, **bound}, make.func
    return bound


def _innermost(make: Callable) -> Any:
    while isinstance(make, functools.partial):
        make = make.func
    return make


def chosen_options(make: Callable | None, hidden: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields that a factory of modules will set, as far as a config can hold them."""
    if make is None:
        return {}
    kind = _innermost(make)
    values = _values(kind, kind)
    values |= {name: value for name, value in _bound(make).items() if _is_option(name, value)}
    return {name: value for name, value in values.items() if name not in hidden}


def _values(module: nn.Module | Callable, kind: Any) -> dict[str, Any]:
    """The fields of a module, or the defaults of its class, that a config can hold."""
    names = [field.name for field in dataclasses.fields(kind)]
    values = {name: getattr(module, name) for name in names if hasattr(module, name)}
    return {name: value for name, value in values.items() if _is_option(name, value)}


def _is_option(name: str, value: Any) -> bool:
    return name not in RESERVED and _is_plain(value)


def _is_plain(value: Any) -> bool:
    """Whether a config can hold it; None is what it would mean anyway."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return value is not None
