"""Parts of a network by name: `sop`'s own, or a user's by import path, with checked options."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn

from sop.checks import check, check_options, quote
from sop.errors import UsageError, show
from sop.import_path import import_object, is_import_path

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
            f"config.model.{key} is {show(value)}; give a name or a dict with 'name' and its "
            "options."
        )
    options = given(value)
    name = options.pop("name", None)
    if name is None and options:
        raise UsageError(f"config.model.{key} has options ({quote(options)}) but no name.")
    check(f"config.model.{key}.name", name, str | None)
    return name, options


def is_detector(config: Mapping[str, Any]) -> bool:
    """Whether a config.model is a detector's, not a classifier's."""
    return entry(config, "detector")[0] is not None


def find(
    role: str, name: str, known: Mapping[str, Callable[..., nn.Module]]
) -> Callable[..., nn.Module]:
    """The module behind a name, or behind 'package.module:Class' of the user's own.

    Raises:
      UsageError: there is none, or it is not a Flax module that is called with (x, train).
    """
    if name in known:
        return known[name]
    if not is_import_path(name):
        raise UsageError(
            f"There is no {role} {show(name)}; there are {quote(known)}, or 'package.module:Class' "
            f"of your own."
        )
    return called_as_module(role, name, import_object(role, name))


def called_as_module(role: str, name: str, found: Any) -> Callable[..., nn.Module]:
    """What a user's import path led to, if it is a Flax module that is called with (x, train)."""
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UsageError(
            f"{role} {show(name)} is no Flax module; name a subclass of flax.linen.Module."
        )
    _, *arguments = inspect.signature(found.__call__).parameters
    if arguments[1:2] != ["train"]:
        raise UsageError(
            f"{role} {show(name)} is called with ({', '.join(arguments)}); it must be a module "
            "that is called with (x, train)."
        )
    return found


def configure(
    role: str,
    name: str,
    module: Callable[..., nn.Module],
    options: Mapping[str, Any],
    *,
    placed: Sequence[str] = (),
    also: Sequence[str] = (),
    **context: Any,
) -> Callable[..., nn.Module]:
    """A factory of the module with options of a config, all checked.

    Args:
      role, name: for messages.
      module: see `find`.
      options: name → value.
      placed: fields that the network sets wherever it puts one; the module must have them.
      also: see `check_options`.
      context: what the module gets if it takes it (`dtype`, `axis_name`).
    Raises:
      UsageError: it lacks a field of `placed`, needs another option or does not take one.
    """
    what = f"{role} {show(name)}"
    fields = inspect.signature(module).parameters
    if missing := [field for field in placed if field not in fields]:
        raise UsageError(f"{what} has no field '{missing[0]}'; a {role} must have {quote(placed)}.")
    check_options(what, module, options, hidden=(*RESERVED, *placed), also=also)
    needed = [name for name, field in fields.items() if field.default is inspect.Parameter.empty]
    if missing := [each for each in needed if each not in (*options, *placed, *RESERVED)]:
        raise UsageError(f"{what} needs the option '{missing[0]}'.")
    return partial(module, **options, **accepted(module, **context))


def accepted(factory: Callable, **context: Any) -> dict[str, Any]:
    """Those of the arguments that `factory` takes."""
    parameters = inspect.signature(factory).parameters
    return {key: value for key, value in context.items() if key in parameters}
