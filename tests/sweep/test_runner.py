"""Runs are started, skipped, gone on with, and outlived by the sweep; most of them only pretend."""

import dataclasses
import fcntl
import json
import signal
import sys
import time
from pathlib import Path

import pytest

import sop
from sop.sweep.__main__ import main as sweep
from sop.sweep.plan import Run, parse_config
from sop.sweep.progress import Progress, forget_failures, progress
from sop.sweep.runner import LOG, _device, execute
from tests.launch import finish, launch, xla_flags

FINISHES = """
import json, os, sys
open("results.json", "w").write(json.dumps({"epoch": 1, "top1": 0.5}))
"""
FAILS = "print('It is wrong.'); print(); raise SystemExit(3)"
DIES = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
WAITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("saved")))
print("waits", flush=True)
time.sleep(60)
"""


@dataclasses.dataclass(frozen=True)
class Pretended(Run):
    """A run that runs a few lines in its folder instead."""

    script: str = ""

    def command(self):
        return [sys.executable, "-c", f"import os; os.chdir({str(self.workdir)!r})\n{self.script}"]


CONFIG = ("--config=configs/digits.py", "--config.num_epochs=1")


def pretend(folder, name, script):
    return Pretended(Path(folder) / name, name, {}, 0, (), parse_config(CONFIG), script)


def states(runs):
    return [progress(run).value for run in runs]


def test_a_failed_run_is_recorded_and_the_others_go_on(tmp_path, capsys):
    scripts = {"a": FAILS, "b": FINISHES, "c": DIES, "d": FINISHES}
    runs = [pretend(tmp_path, *each) for each in scripts.items()]
    finished = []
    assert execute(runs, jobs=2, finished=finished.append)
    assert states(runs) == ["failed", "finished", "left", "finished"]
    assert {run.method for run in finished} == {"b", "d"}
    said = capsys.readouterr().out
    assert "a: failed, It is wrong.; " in said and "c: ended by SIGKILL" in said
    assert "b: top-1 50.00%" in said and "none left" in said and " left, about 0:00:0" in said
    assert json.loads((tmp_path / "a" / "failure.json").read_text())["status"] == 3

    forget_failures(runs[:1])
    again = [dataclasses.replace(run, script=FINISHES) for run in runs]
    assert states(again)[0] == "left"
    finished.clear()
    execute(again, jobs=1, finished=finished.append)
    assert [run.method for run in finished] == ["a", "c"]  # the others are not run again
    assert (tmp_path / "a" / LOG).read_text() == "It is wrong.\n\n"


def test_what_another_process_runs_is_left_alone(tmp_path):
    run = pretend(tmp_path, "a", FINISHES)
    run.workdir.mkdir()
    with open(run.workdir / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert progress(run) is Progress.RUNNING
        execute([run], jobs=1)
        assert not (run.workdir / LOG).exists()
    assert progress(run) is Progress.LEFT


def test_more_epochs_are_more_to_do(tmp_path):
    run = pretend(tmp_path, "a", FINISHES)
    execute([run], jobs=1)
    longer = dataclasses.replace(run, config=parse_config([*CONFIG, "--config.num_epochs=2"]))
    assert states([run, longer]) == ["finished", "left"]
    (run.workdir / "results.json").write_text("{")
    assert states([run]) == ["left"]


def test_a_signal_is_passed_on_to_the_runs(tmp_path):
    script = "import sys; from tests.sweep import test_runner as t; t.sweep_of_waiting(sys.argv[1])"
    process = launch("-c", script, str(tmp_path))
    log = tmp_path / "a" / LOG
    while process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    [output] = finish([process], timeout=60)
    assert process.returncode == 0, output
    assert "Stopping 1 run(s)" in output and "a: stopped; 1 left" in output
    assert log.read_text() == "waits\nsaved\n" and not (tmp_path / "b").exists()


def sweep_of_waiting(folder):
    """What the process of the test above does."""
    runs = [pretend(folder, name, WAITS) for name in "ab"]
    assert not execute(runs, jobs=1)
    assert states(runs) == ["left", "left"]


@pytest.mark.parametrize(
    ("jobs", "gpus", "devices", "share"),
    [(2, ["4", "7"], ["4", "7"], "0.900"), (4, ["0", "1"], ["0", "1", "0", "1"], "0.450")],
)
def test_each_job_has_a_gpu(jobs, gpus, devices, share):
    given = [_device(slot, jobs, gpus) for slot in range(jobs)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in given] == devices
    assert {each["XLA_PYTHON_CLIENT_MEM_FRACTION"] for each in given} == {share}
    assert _device(0, 1, gpus) == _device(1, 2, []) == {}


def test_runs_are_ordinary_work_folders(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", xla_flags(devices=1))  # compiles faster than for eight
    command = [
        "--config=configs/digits.py",
        "--config.num_epochs=1",
        "--config.batch_size=120",
        "--config.input.train_split=train[:360]",
        "--validation=train[:240],train[240:360]",
        "--grid=model.representation.name=gavp",
        "--tune=optimizer.learning_rate=0.1",
        f"--workdir={tmp_path}",
    ]
    sweep(command)
    folder = tmp_path / "representation=gavp,seed=0"
    run = sop.load(folder)
    assert run.config.optimizer.learning_rate == 0.1 and run.step == 3
    trial = tmp_path / "tuning" / "representation=gavp,learning_rate=0.1,seed=0"
    counts = [json.loads((each / "results.json").read_text())["count"] for each in (trial, folder)]
    assert counts == [120, 360]
    capsys.readouterr()
    sweep(command)
    assert "1 run(s) in " in (said := capsys.readouterr().out) and "1 finished" in said
    assert "1 left" not in said
