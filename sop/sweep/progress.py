"""How far a run of a sweep is, as its work folder tells."""

import json
import math
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from sop.config import stage_configs
from sop.sweep.plan import Run
from sop.training.durable import write_json
from sop.training.lock import is_in_use
from sop.training.scores import best_score

FAILURE = "failure.json"


class Progress(StrEnum):
    """Of a run; what is `LEFT` has not begun or was stopped, and goes on."""

    FINISHED = "finished"
    FAILED = "failed"
    RUNNING = "running"
    LEFT = "left"


def progress(run: Run) -> Progress:
    """How far a run is. `RUNNING`: a live process uses its folder."""
    if is_in_use(run.workdir):
        return Progress.RUNNING
    if result(run) is not None:
        return Progress.FINISHED
    return Progress.FAILED if (run.workdir / FAILURE).exists() else Progress.LEFT


def result(run: Run) -> dict[str, Any] | None:
    """`results.json` of a run that has finished."""
    found = read_results(run.workdir)
    epochs = sum(stage.num_epochs for stage in stage_configs(run.config))
    return found if found and found["epoch"] >= epochs else None


def read_results(workdir: Path) -> dict[str, Any] | None:
    """`results.json` of a work folder; None where there is none, or a damaged one."""
    try:
        found = json.loads((workdir / "results.json").read_bytes())
        if isinstance(found, dict) and isinstance(found.get("epoch"), int | float):
            return found if math.isfinite(best_score(found)) else None
    except (OSError, ValueError):
        pass
    return None


def record_failure(run: Run, status: int, said: str) -> None:
    """Writes down that a run ended with another exit status than 0."""
    write_json(run.workdir / FAILURE, {"status": status, "said": said, "command": str(run)})


def failure(run: Run) -> str:
    """What a run that failed said last; "" of others."""
    try:
        return json.loads((run.workdir / FAILURE).read_bytes())["said"]
    except FileNotFoundError:
        return ""


def forget_failures(runs: Sequence[Run]) -> None:
    """Failed runs become runs that are left."""
    for run in runs:
        (run.workdir / FAILURE).unlink(missing_ok=True)
