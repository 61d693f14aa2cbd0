"""What the checkpoints of a work folder say, read without restoring one; see `checkpoints`."""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sop.errors import UsageError
from sop.training.durable import unseal, verify_checksums
from sop.training.history import evaluation_at
from sop.training.scores import best_score
from sop.training.storage import entries, is_committed, locate

FOLDER = "checkpoints"
SCORES = "scores.json"
EMA = "ema"


def steps_in(workdir: str | os.PathLike) -> list[int]:
    """The steps of a work folder's whole checkpoints, in ascending order."""
    folders = (path for path in entries(locate(workdir) / FOLDER) if is_step(path.name))
    return sorted(int(path.name) for path in folders if is_committed(path))


def is_step(name: str) -> bool:
    """Whether it is the name of a checkpoint; '²'.isdigit() is True as well."""
    return name.isascii() and name.isdigit()


def refuse_strange_names(directory: Path) -> None:
    """Raises UsageError for what Orbax would take for a checkpoint, or stumble over."""
    for path in entries(directory):
        if path.name.isdigit() and not (is_step(path.name) and path.is_dir()):
            raise UsageError(f"{path} is no checkpoint: move it out of {directory}.")


def best_step(workdir: str | Path) -> int | None:
    """The step of the best evaluation, the later one of equals; None: never evaluated."""
    scored = [
        (best_score(scores), step)
        for step in steps_in(workdir)
        if (scores := scores_of(workdir, step)) is not None
    ]
    return max(scored)[1] if scored else None


def saved_progress(workdir: str | os.PathLike) -> dict[str, Any]:
    """The progress of the newest checkpoint of which it can be read; {}: there is none."""
    for step in reversed(steps_in(workdir)):
        folder = locate(workdir) / FOLDER / str(step)
        with contextlib.suppress(OSError, ValueError):
            verify_checksums(folder, ["progress"])
            progress = json.loads((folder / "progress" / "metadata").read_bytes())
            if isinstance(progress, dict):
                return progress
    return {}


def refuse_converted(workdir: str | Path) -> None:
    """Raises UsageError where a work folder holds weights without a run, which nothing resumes."""
    folder = locate(workdir) / FOLDER / "0"
    if (folder / "variables").is_dir() and not (folder / "progress").exists():
        raise UsageError(
            f"Work folder {workdir} holds converted weights: train in another --workdir, starting "
            f"from them with --config.init_from={workdir}."
        )


def candidates(directory: Path, which: str) -> list[int]:
    """The steps to try, first to last, for 'best', 'latest' or a step; see `restore_variables`."""
    steps = steps_in(directory.parent)[::-1]
    if not steps:
        raise UsageError(
            f"There is no checkpoint in {directory}; train first, or name another work folder."
        )
    if which in ("best", "latest"):
        best = best_step(directory.parent) if which == "best" else None
        return ([] if best is None else [best]) + [step for step in steps if step != best]
    if not is_step(which) or int(which) not in steps:
        raise UsageError(
            f"There is no checkpoint {which!r} in {directory}; use 'best', 'latest' "
            f"or one of {', '.join(map(str, sorted(steps)))}."
        )
    return [int(which)]


def scores_of(workdir: str | Path, step: int) -> dict[str, float] | None:
    """The scores of a checkpoint, from beside it or, where these are damaged, from the history."""
    folder = locate(workdir) / FOLDER / str(step)
    for name in (SCORES, "metrics/metrics"):  # the latter is of earlier versions
        try:
            return unseal((folder / name).read_bytes())[0]
        except OSError:
            continue
    return evaluation_at(workdir, step)


def averaged(directory: Path, steps: Sequence[int]) -> list[int]:
    """Those of the steps at which averages were saved."""
    found = [step for step in steps if (directory / str(step) / EMA).is_dir()]
    if not found:
        raise UsageError(
            f"No averages were saved in {directory}: its run had no config.ema_decay; leave "
            f"'/{EMA}' out."
        )
    return found
