"""Variables of a checkpoint by themselves: to start from, to convert, and whether they fit."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from sop.errors import UsageError, first_line
from sop.training.durable import verify_checksums, write_checksums
from sop.training.optimizer import path_name
from sop.training.saved import EMA, FOLDER, averaged, candidates, is_step
from sop.training.storage import absolute, entries


def save_variables(workdir: str | Path, variables: Mapping[str, Any]) -> None:
    """Writes variables (host arrays) as checkpoint 0 of a work folder, e.g. converted weights.

    Raises:
      UsageError: the folder already has checkpoints.
    """
    directory = absolute(workdir) / FOLDER
    if entries(directory):
        raise UsageError(f"{directory} already has checkpoints; choose an empty work folder.")
    options = ocp.CheckpointManagerOptions(async_options=sealing(directory, lambda: 0))
    handlers = {"variables": ocp.StandardCheckpointHandler()}
    with ocp.CheckpointManager(directory, options=options, item_handlers=handlers) as manager:
        args = ocp.args.Composite(variables=ocp.args.StandardSave(dict(variables)))
        manager.save(0, args=args)
        manager.wait_until_finished()


def find_variables(path: str | Path) -> list[Path]:
    """The checkpoints that `path` names, to be tried first to last.

    Args:
      path: a work folder (its best checkpoint, then the latest ones) or one checkpoint's folder
        `WORKDIR/checkpoints/STEP`; either with `/ema` behind it for the averages there.
    Raises:
      UsageError: there is none.
    """
    path, item = _without_item(path)
    one = is_step(path.name) and path.parent.name == FOLDER
    directory, which = (path.parent, path.name) if one else (path / FOLDER, "best")
    steps = candidates(directory, which)
    steps = averaged(directory, steps) if item == EMA else steps
    return [directory / str(step) for step in steps]


def _without_item(path: str | Path) -> tuple[Path, str]:
    """'RUN/ema' → ('RUN', 'ema'), 'RUN' → ('RUN', 'variables')."""
    path = absolute(path)
    return (
        (path.parent, EMA)
        if path.name == EMA and not (path / FOLDER).exists()
        else (path, "variables")
    )


def load_variables(path: str | Path) -> dict[str, Any]:
    """Variables as NumPy arrays, whatever their shapes, to initialise another run from.

    Args:
      path: see `find_variables`.
    Raises:
      UsageError: there is no checkpoint, or none can be read.
    """
    item = _without_item(path)[1]
    for step in find_variables(path):
        try:
            with ocp.PyTreeCheckpointer() as reader:
                verify_checksums(step, [item])
                tree = reader.metadata(step / item).item_metadata.tree
                as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
                return reader.restore(step / item, restore_args=as_numpy)
        except Exception as caught:  # as in Checkpoints.restore_newest
            error = caught
    raise UsageError(f"No checkpoint of {path} can be read ({first_line(error)}).") from error


def sealing(directory: Path, step: Callable[[], int]) -> ocp.AsyncOptions:
    """Has the first process write a checkpoint's checksums when all of it is there but its name.

    Args:
      step: of the checkpoint that is being written.
    """

    def write() -> None:
        draft = f"{step()}.orbax-checkpoint-tmp"
        unnamed = [path for path in entries(directory) if path.name.startswith(draft)]
        for folder in unnamed or [directory / str(step())]:
            write_checksums(folder)

    return ocp.AsyncOptions(post_finalization_callback=write)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path_name(p): tuple(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def shape_differences(wanted: Any, saved: Any) -> list[str]:
    """How two trees differ in names and shapes, one phrase each."""
    want, have = _shapes(wanted), _shapes(saved)
    missing = [f"{name} is missing" for name in want if name not in have]
    extra = [f"{name} is not of this model" for name in have if name not in want]
    shapes = [
        f"{name} has shape {have[name]} instead of {want[name]}"
        for name in want
        if name in have and want[name] != have[name]
    ]
    return missing + extra + shapes


def refuse_other_shapes(wanted: Any, saved: Any, what: str) -> None:
    """Raises UsageError, naming the first differences, unless names and shapes are equal."""
    found = shape_differences(wanted, saved)
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UsageError(
            f"The {what} is of another model: {'; '.join(found[:3])}{more}; use the config that "
            "it was made with, or another work folder."
        )
