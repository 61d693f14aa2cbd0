"""Two processes of one run, the second of which misbehaves."""

import functools
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.kill_and_resume import unequal
from tests.launch import free_port
from tests.torture.trial import RUN, Bench, End, Trial, expect, start, wait

_TIMEOUT = 30  # seconds that processes wait for one another
_SECONDS = 300  # to an end, with time to start and to compile on a machine that others use

# What the second process is told that the first is not; it is refused in both.
_CONTRADICTIONS = {
    "has another seed": ["--config.seed=1"],
    "has another learning rate": ["--config.optimizer.learning_rate=0.3"],
    "has another data set": ["--config.input.train_split=train[:50%]"],
    "has other transforms": ["--config.input.train_transforms=flip"],
    "has another network": ["--config.model.attention=cgd"],
    "evaluates": ["--mode=eval"],
    "has another work folder": ["--workdir={elsewhere}"],
    "knows of three processes": ["--num_processes=3"],
    "has the other's number": ["--process_id={other}"],
    "has an unknown key": ["--config.none_such=1"],
    "has a data set that is not there": ["--config.input.dataset=folder:/none/such"],
    "never comes": None,
}


def processes(rng: random.Random, bench: Bench) -> Trial:
    """Both end with a sentence within a time, and go on from there as if nothing had happened."""
    path = bench.new_folder()
    what = rng.choice([*_CONTRADICTIONS, "is killed", "is killed", "is asked to stop"])
    first_misbehaves = rng.random() < 0.3
    moment = rng.uniform(0.3, 25)

    def run() -> None:
        whole = _undisturbed(bench)
        if what in _CONTRADICTIONS:
            more = _CONTRADICTIONS[what]
            if more is not None:
                words = {"elsewhere": f"{path}-elsewhere", "other": int(first_misbehaves)}
                more = [each.format(**words) for each in more]
            ends = _run_two(path, more, first_misbehaves)
            for end in ends:
                expect(end, [1, 2])
                assert 0 < len(end.err) < 1500, f"{len(end.err)} characters: {end.err[:1500]}"
        else:
            number = signal.SIGKILL if what == "is killed" else signal.SIGTERM
            _run_and_signal(path, number, moment, victim=0 if first_misbehaves else 1)
        ends = _run_two(path, [], first_misbehaves)
        for end in ends:
            expect(end, [0])
        found = unequal(whole, path)
        assert not found, f"not as the pair that nothing disturbed: {found[:3]}"
        bench.clean(path)

    which = "first" if first_misbehaves else "second"
    when = "" if what in _CONTRADICTIONS else f" after {moment:.1f} s"
    return Trial(f"the {which} of two processes {what}{when}", run)


@functools.cache
def _undisturbed(bench: Bench) -> Path:
    """A finished run of two processes."""
    path = bench.new_folder()
    for end in _run_two(path, [], False):
        expect(end, [0])
    return path


def _start(path: Path, port: int, process: int, more: Sequence[str]) -> subprocess.Popen[str]:
    return start(
        [
            *RUN,
            f"--workdir={path}",
            f"--coordinator=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={process}",
            f"--timeout={_TIMEOUT}",
            *more,
        ]
    )


def _run_two(path: Path, more: Sequence[str] | None, first_misbehaves: bool) -> list[End]:
    """The ends of both, of which one is told more, or, for None, does not come."""
    port = free_port()
    odd = 0 if first_misbehaves else 1
    started = []
    for process in range(2):
        if process != odd:
            started.append(_start(path, port, process, []))
        elif more is not None:
            started.append(_start(path, port, process, more))
    try:
        return [wait(process, _SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()


def _run_and_signal(path: Path, number: int, moment: float, victim: int) -> None:
    port = free_port()
    started = [_start(path, port, process, []) for process in range(2)]
    end = time.monotonic() + moment
    while started[victim].poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    if started[victim].poll() is None:
        started[victim].send_signal(number)
    ends = [wait(process, _SECONDS) for process in started]
    if number == signal.SIGKILL:
        expect(ends[1 - victim], [0, 1, 2])
    else:
        # Asked before they know each other, one ends alone and the other misses it.
        for each in ends:
            expect(each, [0, 1, 2, 128 + number])
