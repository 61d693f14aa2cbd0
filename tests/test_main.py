"""`main.py` as users start it: on the digits, killed, on several processes, and refusing."""

import json
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import main
from sop.training.variables import load_variables
from tests.kill_and_resume import newest_step, unequal
from tests.launch import launch, run, run_often, run_together

BRIEF = (
    "main.py",
    "--config=configs/digits.py",
    "--config.num_epochs=2",
    "--config.batch_size=144",
    "--config.model.representation.reduction=16",  # of 128, which compute for most of the time
)
SMALL = (*BRIEF, "--config.checkpoint.every_steps=2")
LAST_STEP = 18


def results(workdir: Path) -> dict:
    return json.loads((workdir / "results.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small run on eight devices that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("main") / "whole"
    code, output = run(*SMALL, f"--workdir={workdir}", devices=8)
    assert code == 0, output
    return workdir, output


def test_a_run_leaves_what_it_promises(whole):
    workdir, output = whole
    assert newest_step(workdir) == LAST_STEP
    for name in ("config.json", "curves.png", "history.jsonl", "checkpoints"):
        assert (workdir / name).exists()
    assert list(workdir.glob("events.out.tfevents.*"))
    found = results(workdir)
    assert found["step"] == LAST_STEP and found["epoch"] == 2.0 and found["count"] == 360
    assert f"top-1 {found['top1']:.2%}" in output.splitlines()[-1]
    [entry] = json.loads((workdir / "provenance.json").read_text())
    assert "--config.num_epochs=2" in entry["command"] and entry["devices"]["count"] == 8
    assert set(entry["git"]) == {"commit", "dirty"} and entry["packages"]["jax"]
    assert 0 < entry["seconds"] < 300 and entry["start"].endswith("+00:00")
    assert json.loads((workdir / "config.json").read_text())["model"]["last_stride"] == 1
    for words in ("Devices: 8", "all parameters", "batch_size", "images/s"):
        assert words in output


def test_a_killed_run_goes_on_as_if_it_never_stopped(whole, tmp_path):
    workdir = tmp_path / "run"
    for target, number in ((2, signal.SIGKILL), (5, signal.SIGTERM)):
        process = launch(*SMALL, f"--workdir={workdir}", devices=8)
        while newest_step(workdir) < target and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        output, _ = process.communicate(timeout=300)
        if number == signal.SIGTERM:
            assert process.returncode == 0, output
            assert "the same command goes on" in output.splitlines()[-1]
        else:
            assert process.returncode == -number, output
    code, output = run(*SMALL, f"--workdir={workdir}", devices=8)
    assert code == 0, output
    assert "Going on from the checkpoint" in output
    assert unequal(whole[0], workdir) == []


@pytest.mark.heavy
def test_a_killed_run_in_a_bucket_goes_on_as_if_on_a_disk_it_never_stopped(whole, storage):
    """What follows a crash in a bucket is in test_loop."""
    workdir, objects = "gs://stand-in/main/run", storage.buckets["stand-in"]
    process = launch(*SMALL, f"--workdir={workdir}", devices=8)
    while newest_step(workdir) < 4 and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, output
    assert "main/run/.lock" in objects
    code, output = run(*SMALL, f"--workdir={workdir}", "--config.profile=2", devices=8)
    assert code == 0, output
    assert "Going on from the checkpoint" in output and "cannot be written" not in output
    assert unequal(whole[0], workdir) == []
    assert "main/run/.lock" not in objects
    assert any(name.startswith("main/run/events.out.tfevents.") for name in objects)
    assert any(name.endswith(".trace.json.gz") for name in objects)


def test_two_processes_of_four_devices_are_one_of_eight(tmp_path):
    # At the config's rate a rounding of the first step, 3e-8, grows to 1e-3 in 18 steps, where
    # ReLUs open or close for it.
    slow = (*BRIEF, "--config.optimizer.learning_rate=1e-3")
    one, two = tmp_path / "one", tmp_path / "two"
    assert jax.device_count() == 8
    main.main([*slow[1:], f"--workdir={one}"])
    ends = run_together(*slow, f"--workdir={two}", processes=2, devices=4)
    assert [code for code, _ in ends] == [0, 0], ends
    assert "Devices: 8" in ends[0][1] and "Finished" in ends[0][1]
    assert "step" not in ends[1][1]  # only the first process talks
    ours, theirs = (load_variables(w) for w in (one, two))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)
    for name in ("loss", "top1", "top5"):
        np.testing.assert_allclose(results(two)[name], results(one)[name], rtol=1e-4)


def test_evaluation_of_a_run(whole):
    workdir, _ = whole
    before = results(workdir)
    alone = ("--config.eval_batch_size=90", "--checkpoint=latest")  # the rest is the run's own
    code, output = run("main.py", "--mode=eval", f"--workdir={workdir}", *alone)
    assert code == 0, output
    after = results(workdir)
    assert after["top1"] == before["top1"] and after["count"] == 360
    np.testing.assert_allclose(after["loss"], before["loss"], rtol=1e-5)
    assert f"top-1 {after['top1']:.2%}" in output.splitlines()[-1]


REFUSALS = {
    "unknown key": (["--config.batchsize=3"], "batchsize"),
    "unknown nested key": (["--config.optimizer.lr=3"], "lr"),
    "ill-typed value": (["--config.batch_size=many"], "batch_size"),
    "unknown data set": (["--config.input.dataset=digitz"], "digitz"),
    "unknown split": (["--config.input.eval_split=validation"], "validation"),
    "unprepared data set": (["--config.input.dataset=cifar10"], "prepare"),
    "unknown backbone": (["--config.model.backbone=resnet51"], "resnet51"),
    "unknown representation": (["--config.model.representation.name=gap"], "gap"),
    "batch that does not divide": (["--config.batch_size=65"], "8 devices"),
    "classes that disagree": (["--config.model.num_classes=7"], "num_classes"),
    "image too small": (["--config.model.backbone=alexnet"], "8"),
    "unknown transform": (["--config.input.train_transforms=rotate(3)"], "rotate"),
    "batch beyond memory": (["--config.eval_batch_size=800000000"], "set at most"),
    "nothing frozen": (["--config.optimizer.frozen=('bodi',)"], "'bodi', which matches no"),
    "nothing multiplied": (["--config.optimizer.lr_multipliers=(('bodi', 2),)"], "'bodi', which"),
    "all frozen": (["--config.optimizer.frozen=('.',)"], "leaves no parameter to train"),
    "unwritable folder": (["--workdir=/proc/run"], "/proc/run"),
    "no weights to start from": (["--config.init_from=/no/such/run"], "/no/such/run"),
    "evaluating an empty folder": (["--mode=eval"], "train"),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """What each of REFUSALS ended with, and the work folder that it was not to touch."""
    folder = tmp_path_factory.mktemp("refusals")
    commands = [
        [*SMALL[1:], f"--workdir={folder / str(number)}", *arguments]
        for number, (arguments, _) in enumerate(REFUSALS.values())
    ]
    ends = run_often(commands, folder, devices=8, TFDS_DATA_DIR=str(folder / "data"))
    folders = [folder / str(number) for number in range(len(commands))]
    return dict(zip(REFUSALS, zip(ends, folders, strict=True), strict=True))


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_one_sentence(case, refused):
    (code, output), workdir = refused[case]
    assert code == 2, output
    assert "Traceback" not in output
    assert len(output.strip().splitlines()) == 1, output
    assert REFUSALS[case][1] in output
    assert not workdir.exists()


def test_a_live_run_and_another_config_are_refused(whole, tmp_path):
    workdir, _ = whole
    same = [*SMALL[1:], "--config.num_epochs=50", f"--workdir={tmp_path / 'live'}"]
    live = launch(SMALL[0], *same)
    try:
        while not (tmp_path / "live" / "config.json").exists() and live.poll() is None:
            time.sleep(0.05)
        live.send_signal(signal.SIGSTOP)  # it need not train meanwhile
        other = [*SMALL[1:], "--config.seed=1", f"--workdir={workdir}"]
        (code, output), (other_code, other_output) = run_often([same, other], tmp_path)
        assert code == 2 and f"process {live.pid}" in output
        assert other_code == 2 and "seed was 0, is 1" in other_output
    finally:
        live.kill()
        live.wait()
