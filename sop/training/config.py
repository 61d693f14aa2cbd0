"""Checks of a config against its schema, and of the command line that it comes from."""

import difflib
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict

from sop.errors import UsageError

# What is put into a network takes the options of its own module: `sop.models` checks those, and
# those of the backbone, which stand in `model` itself.
_OPEN = ("model.attention", "model.pool", "model.representation")


def check(config: ConfigDict, default: ConfigDict) -> None:
    """Refuses a config that cannot be meant.

    Args:
      config: the experiment's, after overrides.
      default: the schema: every key that there is, with a value of its type. A key whose value
        there is None (a placeholder) may be None. The options of the backbone in `model`, and
        those in `model.attention`, `model.pool` and `model.representation`, are left to
        `sop.models`.
    Raises:
      UsageError: for the first unknown key, value of another type, or value that no run can have;
        in what `config.stages` change, for the first two.
    """
    known = _paths(default)
    _check_keys(config, default, "", known)
    for key, (condition, meaning) in _CONDITIONS.items():
        value = _lookup(config, key)
        if value is not None and not condition(value):
            raise UsageError(f"config.{key} is {value!r} but must be {meaning}.")
    for index, changes in enumerate(config.stages):
        try:
            _check_keys(ConfigDict(changes), default, "", known)
        except UsageError as error:
            raise UsageError(f"In config.stages[{index}]: {error}") from None


def check_batch(
    config: ConfigDict,
    device_count: int,
    keys: Sequence[str] = ("batch_size", "eval_batch_size"),
) -> None:
    """Refuses batch sizes that `device_count` devices, of all processes, cannot share evenly.

    Args:
      keys: the batch sizes that will be used.
    Raises:
      UsageError: naming the nearest sizes that they can.
    """
    for key in keys:
        size = config[key]
        if size % device_count:
            below, above = size - size % device_count, size - size % device_count + device_count
            nearest = f"{below} or {above}" if below else f"{above}"
            raise UsageError(
                f"config.{key} is {size}, which {device_count} devices cannot share evenly: "
                f"set --config.{key}={nearest}."
            )


def parse_flags(
    argv: Sequence[str], default: ConfigDict | None, file: str | None, *, operands: int = 0
) -> list[str]:
    """Parses a command line with a flag `--config`, or says in one sentence what is wrong.

    For `absl.app.run(main, flags_parser=functools.partial(parse_flags, …))`, with
    `DEFINE_config_file('config', lock_config=False, accept_new_attributes=True)`, so that options
    of `model.attention` and the like can be given there as well. That flag itself has no default:
    ml_collections would read it, and fail, before anything could catch that.

    Args:
      argv: program name and arguments.
      default: the schema, as for `check`; None: the keys that the config file itself has.
      file: the config file where `--config` is left out, if any.
      operands: how many arguments may be no flags, as a file to read.
    Returns:
      The program name and the operands; more arguments that are not flags are refused.
    Raises:
      SystemExit: with status 2, after the sentence on stderr. Where a config file fails for another
        reason than a key or value of its config, that is a bug there and its traceback is kept.
    """
    if file and not any(re.match(r"--?config(=|$)", argument) for argument in argv[1:]):
        argv = [argv[0], f"--config={file}", *argv[1:]]
    try:
        _check_command_line(argv[1:], default)
        rest = flags.FLAGS(argv)
        if len(rest) > 1 + operands:
            raise UsageError(f"{rest[1 + operands]!r} is not a flag: write --NAME=VALUE.")
        return rest
    except (UsageError, flags.Error, AttributeError, TypeError, ValueError, KeyError) as error:
        sentence = str(error) if isinstance(error, UsageError) else _explain(error)
        if sentence is None:
            raise
        print(sentence, file=sys.stderr)
        sys.exit(2)


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys → values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _check_keys(config: ConfigDict, default: ConfigDict, prefix: str, known: Sequence[str]) -> None:
    for key in config:
        path = prefix + key
        if key not in default:
            if _may_be_option(path, known):
                continue
            raise UsageError(f"There is no config key '{path}'.{_closest(path, known)}")
        value, expected = config[key], default.get_type(key)
        if isinstance(default[key], ConfigDict):
            if value is None and path in _OPEN:
                continue
            if not isinstance(value, ConfigDict):
                raise UsageError(
                    f"config.{path} is {value!r} but must hold the keys {sorted(default[key])}."
                )
            _check_keys(value, default[key], f"{path}.", known)
        elif not ((value is None and default[key] is None) or _is_a(value, expected)):
            raise UsageError(
                f"config.{path} is {value!r} but must be {_describe(expected)}"
                f"{' or None' if default[key] is None else ''}."
            )


def _may_be_option(path: str, known: Sequence[str]) -> bool:
    """Whether a key is one for `sop.models` to check, rather than a misspelt one."""
    parent = path.rpartition(".")[0]
    misspelt = difflib.get_close_matches(path, known, n=1, cutoff=0.85)
    return parent in _OPEN or (parent == "model" and not misspelt)


def _closest(path: str, known: Sequence[str]) -> str:
    """The known key most like `path`, as a remedy: by its last name, wherever that stands."""
    last = path.rpartition(".")[2]
    elsewhere = [p for p in known if p.rpartition(".")[2] == last]
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.7) or elsewhere[:1]
    if close:
        return f" Did you mean '{close[0]}'?"
    return " configs/default.py lists all of them."


def _paths(config: ConfigDict, prefix: str = "") -> list[str]:
    paths = []
    for key in config:
        paths.append(prefix + key)
        if isinstance(config[key], ConfigDict):
            paths += _paths(config[key], f"{prefix}{key}.")
    return paths


def _is_a(value: Any, expected: type) -> bool:
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if expected is tuple:
        return isinstance(value, tuple | list)
    return isinstance(value, expected)


def _describe(expected: type) -> str:
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "a string"}
    return names.get(expected, f"a {expected.__name__}")


def _lookup(config: ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part)
        if config is None:
            return None
    return config


def _at_least(least: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value >= least, f"at least {least}"


def _one_of(*names: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in names, "one of " + ", ".join(map(repr, names))


def _is_pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (TypeError, re.error):
        return False
    return True


_PATTERNS = (
    lambda value: all(map(_is_pattern, value)),
    "a tuple of regular expressions",
)
_PATTERN_PAIRS = (
    lambda value: all(
        isinstance(pair, tuple | list)
        and len(pair) == 2
        and _is_pattern(pair[0])
        and _is_a(pair[1], float)
        for pair in value
    ),
    "a tuple of pairs (regular expression, number)",
)
_POSITIVE = (lambda value: value > 0, "above 0")
_FRACTION = (lambda value: 0 <= value < 1, "at least 0 and below 1")
_EPOCHS = (
    lambda value: (
        all(_is_a(epoch, float) and epoch > 0 for epoch in value)
        and list(value) == sorted(set(value))
    ),
    "epochs above 0 in ascending order",
)

_CONDITIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": _at_least(0),
    "dtype": _one_of("float32", "bfloat16"),
    "model.num_classes": _at_least(1),
    "input.num_workers": _at_least(0),
    "input.bad_images": _one_of("stop", "skip"),
    "batch_size": _at_least(1),
    "eval_batch_size": _at_least(1),
    "num_epochs": _at_least(1),
    "label_smoothing": _FRACTION,
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.momentum": _FRACTION,
    "optimizer.weight_decay": _at_least(0),
    "optimizer.clip_norm": _POSITIVE,
    "optimizer.lr_multipliers": _PATTERN_PAIRS,
    "optimizer.weight_decays": _PATTERN_PAIRS,
    "optimizer.frozen": _PATTERNS,
    "schedule.name": _one_of("step", "cosine", "log", "constant"),
    "schedule.warmup_epochs": _at_least(0),
    "schedule.boundaries": _EPOCHS,
    "schedule.factor": _POSITIVE,
    "schedule.final_learning_rate": _at_least(0),
    "stages": (
        lambda value: all(isinstance(changes, dict | ConfigDict) for changes in value),
        "a tuple of dicts of changed keys",
    ),
    "checkpoint.keep": _at_least(1),
    "checkpoint.every_steps": _at_least(1),
    "eval_every_epochs": _at_least(1),
    "log_every_steps": _at_least(1),
    "profile": _at_least(0),
}


def _check_command_line(arguments: Sequence[str], default: ConfigDict | None) -> None:
    """Refuses a missing config file, and overrides of keys that the schema does not have."""
    files = [a.partition("=")[2] for a in arguments if re.match(r"--?config=", a)]
    files += [b for a, b in pairwise(arguments) if re.fullmatch(r"--?config", a)]
    for file in files:
        path = Path(file.partition(":")[0])
        if not path.is_file():
            names = [str(other) for other in sorted(path.parent.glob("*.py"))]
            close = difflib.get_close_matches(str(path), names, n=1)
            remedy = f"Did you mean {close[0]}?" if close else "Check the path."
            raise UsageError(f"There is no config file {path}. {remedy}")
        if not re.search(r"^def get_config\(", path.read_text(), re.MULTILINE):
            raise UsageError(f"Config file {path} defines no function get_config().")
    if default is None:
        if not files:
            return  # absl asks for it
        default = _load(files[-1])
    known = _paths(default)
    for argument in arguments:
        override = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if not override:
            continue
        path = override[1]
        if path in known:
            continue
        if path.rpartition(".")[0] not in known or not _may_be_option(path, known):
            raise UsageError(f"There is no config key '{path}'.{_closest(path, known)}")


def _load(file: str) -> ConfigDict:
    """The config of a file, given as for `--config`: PATH or PATH:ARGUMENT."""
    path, colon, argument = file.partition(":")
    get_config = runpy.run_path(path)["get_config"]
    return get_config(argument) if colon else get_config()


def _explain(error: BaseException) -> str | None:
    """The sentence for a command line that could not be parsed; None for a bug in a config file."""
    link: BaseException | None = error
    while link is not None:
        frames = traceback.extract_tb(link.__traceback__)
        if frames and Path(frames[-1].filename).parent == Path(config_dict.__file__).parent:
            # A config file asked its ConfigDict for what that does not have or hold.
            caller = [f for f in frames if "ml_collections" not in Path(f.filename).parts][-1]
            return f"{caller.filename}, line {caller.lineno}, {caller.line!r}: {_reason(link)}"
        link = link.__cause__ or link.__context__
    if not isinstance(error, flags.Error):
        return None
    message = str(error)
    missing = re.search(r"Flag --(\w+) must have a value", message)
    if missing:  # perhaps several, a line each
        return f"Flag --{missing[1]} is missing: give --{missing[1]}=VALUE."
    if "\n" in message:
        return None
    override = re.fullmatch(r"flag --([^=]+)=(.*?): (.*)", message)
    if not override:
        return message
    name, value, reason = override.groups()
    for symptom, expected in (
        ("invalid literal for int", int),
        ("could not convert string to float", float),
        ("Non-boolean argument", bool),
    ):
        if symptom in reason:
            return f"--{name} is {value!r} but must be {_describe(expected)}."
    return f"--{name}={value} cannot be read: {reason}"


def _reason(error: BaseException) -> str:
    """ConfigDict's message on one line; it wraps one exception in another."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    return ". ".join(str(arg) for arg in error.args).replace("\n", ". ")
