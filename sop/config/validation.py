"""Refusals of configs that cannot be meant, and of changes that a run cannot go on with."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from sop.checks import check as check_value
from sop.checks import fits
from sop.config.schema import KEYS, OPEN, RENAMED, get_config
from sop.errors import UsageError, did_you_mean, show

_LONGEST = 1000  # characters of a string: no path or name has more
GROUPS = {key.rpartition(".")[0] for key in KEYS} - {""}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys → values; an empty or missing group is a value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def check(config: ConfigDict) -> None:
    """Refuses a config that cannot be meant, its stages included.

    The options of the backbone in `model`, and those in `model.attention`, `model.pool`,
    `model.norm` and `model.representation`, are left to `sop.models`, those in `optimizer.rule` to
    `sop.training`.

    Raises:
      UsageError: for the first unknown or missing key, or value that the schema does not allow.
    """
    flat = flatten(config)
    for key, value in flat.items():
        check_key(key, value)
    if missing := [key for key in KEYS if key not in flat and not _is_empty(flat, key)]:
        raise UsageError(
            f"The config has no key '{missing[0]}'; start it from sop.config.get_config()."
        )
    stage_configs(config)


def stage_configs(config: ConfigDict) -> list[ConfigDict]:
    """The config of each stage: `config` itself, or it with each of `config.stages` laid over it.

    Raises:
      UsageError: a stage changes an unknown key or one of the whole run, or to an invalid value.
    """
    if not config.stages:
        return [config]
    stages = []
    for index, changes in enumerate(config.stages):
        flat = flatten(changes)
        try:
            for key, value in flat.items():
                check_key(key, value)
        except UsageError as error:
            raise UsageError(f"In config.stages[{index}]: {error}") from None
        fixed = [key for key in flat if not _of_a_stage(key)]
        if fixed:
            raise UsageError(
                f"config.stages[{index}] sets '{fixed[0]}', which belongs to the whole run; "
                "remove it from the stage."
            )
        stage = config.copy_and_resolve_references()
        with stage.unlocked(), stage.ignore_type():
            stage.update_from_flattened_dict({**flat, "stages": ()})
        stages.append(stage)
    return stages


def _of_a_stage(key: str) -> bool:
    return KEYS[key].stage if key in KEYS else key.startswith("optimizer.rule.")


def check_batches(
    config: ConfigDict, device_count: int, keys: Sequence[str] = ("batch_size", "eval_batch_size")
) -> None:
    """Refuses batch sizes that `device_count` devices, of all processes, cannot share evenly.

    In training each device cuts its share into `config.accumulation` parts, and mixup and CutMix
    take the examples of a part in pairs.

    Args:
      keys: the batch sizes that will be used, in any stage.
    Raises:
      UsageError: naming the nearest sizes that they can.
    """
    for stage in stage_configs(config):
        for key in keys:
            size, parts, cut = stage[key], device_count, ""
            if key == "batch_size" and stage.accumulation > 1:
                parts *= stage.accumulation
                cut += f" in {stage.accumulation} parts each (config.accumulation)"
            if key == "batch_size" and (stage.mixup or stage.cutmix):
                parts *= 2
                cut += " in pairs, which mixup and CutMix need"
            if rest := size % parts:
                choices = " or ".join(
                    str(each) for each in (size - rest, size - rest + parts) if each
                )
                raise UsageError(
                    f"config.{key} is {size}, which {device_count} devices cannot share evenly"
                    f"{cut}: set --config.{key}={choices}."
                )


def refuse_unknown(key: str) -> None:
    """Raises UsageError, with the closest key that there is, for a key that no config has.

    What stands beside the schema's keys in an open group may be an option of a module, unless it
    looks like one of them misspelt.
    """
    known = [*KEYS, *GROUPS]
    parent, _, last = key.rpartition(".")
    misspelt = did_you_mean(key, known, cutoff=0.85) if parent == "model" else ""
    if key in RENAMED:
        raise UsageError(f"config.{key} is now config.{RENAMED[key]}.")
    if key in known or (parent in OPEN and not misspelt):
        return
    elsewhere = [f" Did you mean '{each}'?" for each in KEYS if each.rpartition(".")[2] == last]
    hint = did_you_mean(key, known, cutoff=0.7) or "".join(elsewhere[:1])
    raise UsageError(f"There is no config key {show(key)}.{hint or ' --help lists all of them.'}")


def check_key(key: str, value: Any, text: str | None = None) -> None:
    """Refuses an unknown key, and a value that it cannot have.

    Args:
      text: what the user wrote, to be shown instead of the value.
    Raises:
      UsageError: naming the key and what it may be.
    """
    refuse_unknown(key)
    if isinstance(value, str) and (len(value) > _LONGEST or any(each < " " for each in value)):
        raise UsageError(
            f"config.{key} is {text or show(value)} but must be one line of at most {_LONGEST} "
            "characters, none of them a control character."
        )
    if key in KEYS:
        check_value(f"config.{key}", value, KEYS[key].hint, text)
    elif key in GROUPS and not _may_be_group(key, value):
        inner = (known.removeprefix(f"{key}.") for known in KEYS if known.startswith(f"{key}."))
        names = dict.fromkeys(name.partition(".")[0] for name in inner)
        raise UsageError(
            f"config.{key} is {text or show(value)} but must hold the keys {', '.join(names)}."
        )
    elif not _is_plain(value):
        raise UsageError(
            f"config.{key} is {text or show(value)} but must be made of strings, finite numbers, "
            "True, False, None, tuples and dicts whose keys are strings."
        )


def as_json(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """What a config is after a round trip through JSON (tuples become lists)."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    return json.loads(json.dumps(plain))


def from_json(saved: Mapping[str, Any]) -> ConfigDict:
    """The config that `as_json` has made `saved` of, or an earlier version of the schema.

    Keys that it lacks have their defaults, renamed ones their present names.

    Raises:
      UsageError: it is no config.
    """
    config = get_config()
    flat = {RENAMED.get(key, key): _tuples(value) for key, value in flatten(saved).items()}
    with config.unlocked(), config.ignore_type():
        try:
            config.update_from_flattened_dict(flat)
        except (AttributeError, KeyError, TypeError) as error:
            raise UsageError(f"It is no config, {error}.") from error
    check(config)
    return config


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(each) for key, each in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def differences(
    saved: Mapping[str, Any], present: Mapping[str, Any], groups: Sequence[str] = ("",)
) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two configs (as JSON) → (saved, present).

    A key that one of them lacks has its default there: a config saved before a key existed means
    what the key's default means. An option that the schema does not list is None there.

    Args:
      groups: first words of the keys that count; "" for all.
    """
    before, now = ({RENAMED.get(k, k): v for k, v in flatten(c).items()} for c in (saved, present))
    found = {}
    for key in sorted(before.keys() | now.keys()):
        default = as_json({"": KEYS[key].default if key in KEYS else None})[""]
        values = before.get(key, default), now.get(key, default)
        if values[0] != values[1] and any(key.startswith(group) for group in groups):
            found[key] = values
    return found


def may_change(key: str, config: Mapping[str, Any]) -> bool:
    """Whether a run with this config may go on with another value of a key."""
    resume = KEYS[key].resume if key in KEYS else False
    return resume(config) if callable(resume) else resume


def _may_be_group(key: str, value: Any) -> bool:
    empty = isinstance(value, Mapping | ConfigDict) or value is None
    return empty and key != "model" and (value is not None or key in OPEN)


def _is_plain(value: Any) -> bool:
    """Whether a value keeps its meaning where the config is written down as JSON."""
    if isinstance(value, Mapping | ConfigDict):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return fits(value, str | bool | int | float | None)


def _is_empty(flat: Mapping[str, Any], key: str) -> bool:
    """Whether a group that may be empty or None stands in the place of a key."""
    group = key.rpartition(".")[0]
    return group in OPEN and group in flat
