"""Starts what is left of runs, some at a time, and goes on past those that fail."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from sop.interruption import Interruption, say
from sop.sweep.plan import Run
from sop.sweep.progress import Progress, progress, record_failure, result
from sop.training.scores import describe_best

LOG = "log.txt"
_WAIT = 0.2  # seconds between two looks at the processes
# Ends by a signal, which may come before the first step: such a run is left, it has not failed.
_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


class _Started(NamedTuple):
    run: Run
    process: subprocess.Popen
    slot: int
    began: float


class _Stop(Interruption):
    """The first SIGINT or SIGTERM is passed on to the runs, which save; a second ends this."""

    def __init__(self):
        self.asked = False
        self.started: list[_Started] = []

    def first(self, number: int) -> None:
        self.asked = True
        say(f"Stopping {len(self.started)} run(s), which save; the same command goes on.")
        for each in list(self.started):
            each.process.terminate()


def execute(
    runs: Sequence[Run], jobs: int, finished: Callable[[Run], object] = lambda run: None
) -> bool:
    """Runs those that are left, at most `jobs` at a time, each as a process of `main.py`.

    What a run prints is added to `log.txt` in its folder. One that ends with a status above 0 is
    recorded as failed, see `sop.sweep.progress`; one that a signal ended is left for the next time.

    Args:
      finished: is called after each run that finished.
    Returns:
      False where a signal ended it early.
    """
    waiting = [run for run in runs if progress(run) is Progress.LEFT]
    pace, free = _Pace(len(waiting), jobs), list(range(jobs))
    with _Stop() as stop:
        while (waiting and not stop.asked) or stop.started:
            while waiting and free and not stop.asked:
                run = waiting.pop(0)
                if progress(run) is Progress.LEFT:  # no other sweep has taken it meanwhile
                    stop.started.append(_start(run, free.pop(0), jobs))
                    if stop.asked:  # while it was being started
                        stop.started[-1].process.terminate()
                else:
                    pace.drop()
            for each in [one for one in stop.started if one.process.poll() is not None]:
                stop.started.remove(each)
                free.append(each.slot)
                said = _settle(each, stop.asked)
                pace.add(time.monotonic() - each.began)
                print(f"{each.run.workdir.name}: {said}; {pace}", flush=True)
                if progress(each.run) is Progress.FINISHED:
                    finished(each.run)
            time.sleep(_WAIT)
        return not stop.asked


def _start(run: Run, slot: int, jobs: int) -> _Started:
    run.workdir.mkdir(parents=True, exist_ok=True)
    with open(run.workdir / LOG, "ab") as log:
        process = subprocess.Popen(
            run.command(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_device(slot, jobs, _gpus(os.environ))},
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
        )
    return _Started(run, process, slot, time.monotonic())


def _gpus(environment: Mapping[str, str]) -> list[str]:
    """The NVIDIA devices that this process may use."""
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [each for each in environment["CUDA_VISIBLE_DEVICES"].split(",") if each]
    numbers = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia*"))
    return sorted((each for each in numbers if each.isdigit()), key=int)


def _device(slot: int, jobs: int, gpus: Sequence[str]) -> dict[str, str]:
    """Variables that give a process its device, and its share of the memory there."""
    if not gpus or jobs == 1:
        return {}
    sharing = -(-jobs // len(gpus))
    return {
        "CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)],
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / sharing:.3f}",
    }


def _settle(ended: _Started, stopping: bool) -> str:
    """Writes down how a run ended, and says it."""
    status = ended.process.returncode
    if (found := result(ended.run)) is not None and status == 0:
        return describe_best(found)
    if status < 0 or status in _STOPPED or status == 0 or stopping:
        return "stopped" if status >= 0 else f"ended by {signal.Signals(-status).name}"
    if progress(ended.run) is Progress.RUNNING:
        return "in use by another process"
    said = _last_line(ended.run.workdir / LOG)
    record_failure(ended.run, status, said)
    return f"failed, {said}"


def _last_line(file: Path) -> str:
    lines = file.read_text("utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "without a word")


class _Pace:
    """How many runs are left, and for how long."""

    def __init__(self, total: int, jobs: int):
        self._left, self._jobs = total, jobs
        self._seconds: list[float] = []

    def drop(self) -> None:
        self._left -= 1

    def add(self, seconds: float) -> None:
        self._left -= 1
        self._seconds.append(seconds)

    def __str__(self) -> str:
        each = sum(self._seconds) / len(self._seconds)
        left = timedelta(seconds=round(self._left * each / self._jobs))
        return f"{self._left} left, about {left}" if self._left else "none left"
