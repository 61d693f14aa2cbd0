"""Starting from the weights of another run or of a converted checkpoint (`config.init_from`)."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from sop.errors import UsageError
from sop.training.exported import is_export, read_export
from sop.training.variables import find_variables, load_variables, shape_differences

# The part that must fit whole; a new task may change the others.
_BACKBONE = "features"


def find(source: str) -> None:
    """Raises UsageError where `load` certainly would."""
    if not is_export(source):
        find_variables(source)


def load(source: str) -> dict[str, Any]:
    """The variables of a work folder, a checkpoint or an exported run, as NumPy arrays.

    Raises:
      UsageError: there are none, or they cannot be read.
    """
    return read_export(source)[0] if is_export(source) else load_variables(source)


def merge(
    initial: Mapping[str, Any],
    pretrained: Mapping[str, Any],
    source: str,
    say: Callable[[str], None] = print,
    resampled: Mapping[str, Callable[[Any, tuple[int, ...]], np.ndarray]] | None = None,
) -> dict[str, Any]:
    """Initial variables with everything replaced that the pretrained ones hold.

    A top-level part of the network other than `features` that is missing there, or differs in names
    or shapes (other classes, another representation, the heads of a detector), keeps its initial
    values, and that is said.

    Args:
      initial: variables of the new model, {'params': {'features': …, 'classifier': …}, …}.
      pretrained: variables of the other, the same nesting.
      source: where they come from, for messages.
      resampled: see `sop.models.backbone.Backbone`.
    Raises:
      UsageError: a parameter cannot be resampled, or `features` differs, so that these are weights
        of another backbone.
    """
    merged: dict[str, Any] = {}
    renewed: dict[str, str] = {}
    parts = {part for collection in initial.values() for part in collection}
    for part in sorted(parts):
        want = {name: tree[part] for name, tree in initial.items() if part in tree}
        have = {name: tree[part] for name, tree in pretrained.items() if part in tree}
        if part == _BACKBONE and resampled:
            have = _resample(want, have, resampled, source, say)
        found = shape_differences(want, have)
        if found and part == _BACKBONE:
            raise UsageError(
                f"config.init_from={source} does not fit this model: in {part}, "
                f"{'; '.join(found[:3])}{' and more' if len(found) > 3 else ''}; choose the "
                "backbone, attention and pooling that those weights were made with."
            )
        if found:
            renewed[part] = "of another shape" if have else "not"
        for name, tree in (want if found else have).items():
            merged.setdefault(name, {})[part] = tree
    for part, how in renewed.items():
        say(f"Weights from {source}: {part} is {how} there and starts anew.")
    return merged


def _resample(want, have, resampled, source, say):
    """The features of `have`, with parameters of another image size made those of this one."""
    shapes = traverse_util.flatten_dict(want["params"], sep="/")
    flat = traverse_util.flatten_dict(have.get("params", {}), sep="/")
    for path, resample in resampled.items():
        if path not in flat or path not in shapes:
            continue
        old, new = np.shape(flat[path]), np.shape(shapes[path])
        if old != new and len(old) == len(new) and old[-1] == new[-1]:
            flat[path] = resample(flat[path], new)
            say(f"Weights from {source}: {path} is resampled from {old} to {new}.")
    return {**have, "params": traverse_util.unflatten_dict(flat, sep="/")}
