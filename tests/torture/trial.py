"""What a trial is, and what every trial may use: programs that end in order, undisturbed runs."""

import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.launch import ROOT, environment

# A run of seconds: 2 epochs of 22 steps, with checkpoints in and between them.
RUN = (
    "main.py",
    "--config=configs/digits.py",
    "--config.model.backbone=resnet8_cifar",
    "--config.num_epochs=2",
    "--config.checkpoint.every_steps=6",
    "--config.model.representation.reduction=16",
)
# Signs of an end that nobody wrote a sentence for.
_DISORDER = (
    "Traceback",
    "Fatal Python error",
    "Segmentation fault",
    "*** Check failure",
    "Aborted",
)


class Trial(NamedTuple):
    """One attempt.

    Attributes:
      what: what is done, in words.
      run: does it; raises AssertionError where it is not survived.
    """

    what: str
    run: Callable[[], None]


class End(NamedTuple):
    """How a program ended; negative codes are signals."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


def start(arguments: Sequence[str], devices: int = 1) -> subprocess.Popen[str]:
    """Starts `python ARGUMENTS…` in the top folder, its output to be had by `wait`."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment(devices),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(process: subprocess.Popen[str], seconds: float = 300) -> End:
    """The end of a program, which must come within a time."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"no end within {seconds} s: {(out + err)[-500:]}") from None
    return End(process.returncode, out, err)


def expect(end: End, codes: Sequence[int]) -> None:
    """Asserts that a program ended in order: by a code of these, a refusal by few words."""
    found = [sign for sign in _DISORDER if sign in end.text]
    assert not found, f"{found[0]} in the output: {end.text[-1500:]}"
    assert end.code in codes, f"exit status {end.code}, not {codes}: {end.text[-1500:]}"
    if end.code == 2:
        assert 0 < len(end.err) < 1500, f"{len(end.err)} characters on stderr: {end.err[:1500]}"


class Bench:
    """A folder to work in, and runs that nothing disturbed, made when first asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._count = 0

    def new_folder(self) -> Path:
        """A path of its own, not yet there."""
        self._count += 1
        return self.folder / f"trial{self._count}"

    @functools.cached_property
    def whole(self) -> Path:
        """A finished run."""
        path = self.folder / "whole"
        expect(wait(start([*RUN, f"--workdir={path}"])), [0])
        return path

    @functools.cached_property
    def half(self) -> Path:
        """A run killed after one evaluation and three checkpoints or more."""
        path = self.folder / "half"
        process = start([*RUN, f"--workdir={path}"])
        while process.poll() is None and not (path / "checkpoints" / "24").is_dir():
            time.sleep(0.005)
        process.kill()
        process.communicate()
        return path

    def copy(self, run: Path) -> Path:
        """A copy of a run to be spoiled."""
        path = self.new_folder()
        shutil.copytree(run, path)
        return path

    def clean(self, path: Path) -> None:
        """Removes what a trial made."""
        for folder, names, _ in os.walk(path):
            for name in names:
                os.chmod(Path(folder, name), 0o700)
        shutil.rmtree(path, ignore_errors=True)
