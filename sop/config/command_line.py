"""A config from the command line: `--config=FILE.py[:EXPERIMENT] --config.KEY=VALUE …`."""

import argparse
import ast
import inspect
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sop.checks import fits
from sop.command import Parser
from sop.config.schema import KEYS, OPEN, table
from sop.config.validation import GROUPS, check, check_key, flatten
from sop.errors import UsageError, did_you_mean, shorten

_PREFIX = "--config."


def add_config(parser: Parser, default: str | None = None) -> None:
    """Gives a command the flag `--config`, and its help the table of keys.

    Args:
      default: the config file where the flag is left out; None: it must be given; "": `parse` is
        told what stands for it.
    """
    parser.add_argument(
        "--config",
        metavar="FILE.py[:EXPERIMENT]",
        default=default,
        required=default is None,
        help="the experiment; --config.KEY=VALUE changes a key of it",
    )
    parser.epilog = f"keys of a config, with their defaults:\n{table()}"


def parse(
    parser: Parser,
    arguments: Sequence[str],
    without_file: Callable[[argparse.Namespace], ConfigDict] | None = None,
) -> tuple[argparse.Namespace, ConfigDict]:
    """The flags of a command with `add_config`, and the checked config.

    Args:
      without_file: the flags → the config that is changed where `--config` names no file.
    Raises:
      UsageError: for unknown flags, keys and experiments, and values that cannot be meant.
    """
    # For argparse one with a space in it would be a value of the flag before.
    whole = [each for each in arguments if each.startswith(_PREFIX) and "=" in each]
    options, rest = parser.parse_known_args([each for each in arguments if each not in whole])
    overrides = _overrides(parser, [*whole, *rest])
    if options.config or without_file is None:
        config = load(options.config)
    else:
        config = without_file(options)
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(overrides)
    check(config)
    return options, config


def load(file: str) -> ConfigDict:
    """The config of FILE.py or FILE.py:EXPERIMENT.

    Raises:
      UsageError: there is no such file, or it has no get_config or no such experiment.
    """
    name, colon, experiment = file.partition(":")
    path = Path(name)
    if not path.is_file():
        hint = did_you_mean(name, map(str, path.parent.glob("*.py")))
        raise UsageError(f"There is no config file {path}.{hint or ' Check the path.'}")
    sys.path.append(str(path.resolve().parents[1]))  # for `from configs import …`
    get_config = runpy.run_path(name).get("get_config")
    if get_config is None:
        raise UsageError(f"Config file {path} defines no function get_config().")
    if colon and not inspect.signature(get_config).parameters:
        raise UsageError(f"Config file {path} has no experiments: write --config={path}.")
    return get_config(experiment) if colon else get_config()


def _overrides(parser: Parser, arguments: Sequence[str]) -> dict[str, Any]:
    """'--config.a.b=1', '--config.a.b 1' and a bare '--config.a.b' → {'a.b': value}."""
    overrides: dict[str, Any] = {}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith(_PREFIX):
            flags = [flag for action in parser._actions for flag in action.option_strings]
            raise UsageError(f"There is no flag '{argument}'.{did_you_mean(argument, flags)}")
        key, equals, text = argument.removeprefix(_PREFIX).partition("=")
        if not equals:
            has_value = waiting and not waiting[0].startswith("--")
            text = waiting.pop(0) if has_value else "True"
        value = _value(text, KEYS[key].hint if key in KEYS else Any)
        if isinstance(value, dict) and value and key in GROUPS:
            inner = flatten(value, f"{key}.")
            for each in inner:
                check_key(each, inner[each])
            overrides |= inner
            continue
        if key in OPEN and f"{key}.name" in KEYS:
            key, value = f"{key}.name", None if text == "None" else text
        check_key(key, value, None if isinstance(value, str) else shorten(text))
        overrides[key] = value
    return overrides


def _value(text: str, hint: Any) -> Any:
    """What a text means for a key of this type: itself for strings, else a Python literal."""
    if hint is not Any and text != "None" and fits(text, hint):
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        value = text
    return (value,) if hint is not Any and fits((value,), hint) else value
