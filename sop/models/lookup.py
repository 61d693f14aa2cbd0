"""Parts of a network by name: `sop`'s own, or a user's by import path, with checked options."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from sop.checks import check, quote
from sop.errors import UsageError

# Set by create_model or by the network itself, hence no options of a config.
RESERVED = ("parent", "name", "dtype", "axis_name", "planes")


def given(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are not None, of a dict or a ConfigDict."""
    return {key: value for key, value in config.items() if value is not None}


def entry(config: Mapping[str, Any], key: str) -> tuple[str | None, dict[str, Any]]:
    """The name and the options of one part; a bare name stands for {'name': name}.

    Raises:
      UsageError: it is neither, or has options but no name.
    """
    value = config.get(key)
    if value is None or isinstance(value, str):
        return value, {}
    if not hasattr(value, "keys"):
        raise UsageError(
            f"config.model.{key} is {value!r}; give a name or a dict with 'name' and its options."
        )
    options = given(value)
    name = options.pop("name", None)
    if name is None and options:
        raise UsageError(f"config.model.{key} has options ({quote(options)}) but no name.")
    check(f"config.model.{key}.name", name, str | None)
    return name, options


def find(
    role: str, name: str, known: Mapping[str, Callable[..., nn.Module]]
) -> Callable[..., nn.Module]:
    """The module behind a name, or behind 'package.module:Class' of the user's own.

    Raises:
      UsageError: there is none.
    """
    if name in known:
        return known[name]
    if ":" not in name:
        raise UsageError(
            f"There is no {role} '{name}'; there are {quote(known)}, or 'package.module:Class' of "
            f"your own."
        )
    path, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{role} '{name}' cannot be imported: {error}.") from error


def accepted(factory: Callable, **context: Any) -> dict[str, Any]:
    """Those of the arguments that `factory` takes."""
    parameters = inspect.signature(factory).parameters
    return {key: value for key, value in context.items() if key in parameters}
