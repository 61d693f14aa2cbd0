"""What a run leaves behind and prints: the same whether or not it was interrupted."""

import json
import struct
import subprocess
import sys
from types import SimpleNamespace

import cv2
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from tensorboardX.proto.event_pb2 import Event, SessionLog

from sop.training import events, reporting
from sop.training.history import read_history
from sop.training.plots import draw_curves
from sop.training.reporting import Reporter
from sop.training.stages import Stage
from sop.training.tables import config_table, parameter_table

DATA = {"dataset": "digits", "eval_split": "test", "eval_transforms": ""}
CONFIG = ConfigDict({"input": {**DATA, "normalization": "digits"}})
VARIABLES = {
    "params": {
        "stem": {"conv": {"kernel": np.ones((3, 3, 3, 16), np.float32)}},
        "stage1": {"block0": {"conv": {"kernel": np.ones((3, 3, 16, 32), np.float32)}}},
        "head": {"kernel": np.ones((32, 10), np.float32), "bias": np.ones(10, np.float32)},
    },
    "batch_stats": {"stem": {"norm": {"mean": np.ones(16, np.float32)}}},
}


def make_stage(epochs=3, steps_per_epoch=4, first_step=0, first_epoch=0, batch_size=8):
    config = ConfigDict({"num_epochs": epochs, "batch_size": batch_size})
    data = SimpleNamespace(steps_per_epoch=steps_per_epoch)
    return Stage(config, data, None, lambda step: 1 / (1 + step), first_step, first_epoch)


def make_reporter(workdir, stages=None, **changes):
    arguments = {"log_every": 2, **changes}
    return Reporter(workdir, stages or [make_stage()], **arguments)


def metrics_of(step):
    return {"loss": 1 / 3 + 1 / step, "top1": 1 - 0.7 / step, "top5": 1 - 0.3 / step}


def go_on(workdir, step=0, saved=None, until=12, **changes):
    """Reports steps as a loop does, evaluating each epoch; what `state` returned after each."""
    reporter = make_reporter(workdir, **changes)
    scores = {**metrics_of(step), "count": 360} if step and step % 4 == 0 else None
    reporter.start(CONFIG, VARIABLES, jax.devices(), step=step, saved=saved, scores=scores)
    states = {}
    for now in range(step + 1, until + 1):
        reporter.train(now, metrics_of(now))
        with reporter.pause():
            states[now] = json.loads(json.dumps(reporter.state()))
            if now % 4 == 0:
                reporter.evaluation(now, {**metrics_of(now), "count": 360})
    reporter.finish() if until == 12 else reporter.close()
    return states


def read_events(workdir):
    """What TensorBoard reads: framed events, file after file."""
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            length = struct.unpack("<Q", data[:8])[0]
            yield Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]


def read_scalars(workdir):
    """Tag → {step: value} after what a restart took back; each step at most once."""
    scalars = {}
    for event in read_events(workdir):
        if event.session_log.status == SessionLog.START:
            for points in scalars.values():
                for step in [step for step in points if step >= event.step]:
                    del points[step]
        for value in event.summary.value:
            points = scalars.setdefault(value.tag, {})
            assert event.step not in points
            points[event.step] = value.simple_value
    return scalars


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    go_on(workdir)
    return workdir


def test_entries_are_means_over_windows(whole):
    history = read_history(whole)
    train = [entry for entry in history if entry["split"] == "train"]
    assert [entry["step"] for entry in train] == [2, 4, 6, 8, 10, 12]
    assert [entry["epoch"] for entry in train] == [0.5, 1, 1.5, 2, 2.5, 3]
    assert train[1]["loss"] == (metrics_of(3)["loss"] + metrics_of(4)["loss"]) / 2
    assert train[1]["learning_rate"] == 1 / 4  # of step 4, before which there were 3
    evaluations = [entry for entry in history if entry["split"] == "eval"]
    assert [entry["step"] for entry in evaluations] == [4, 8, 12]
    assert evaluations[0] | metrics_of(4) == evaluations[0]


@pytest.mark.parametrize(("log_every", "ends"), [(1, [1, 2, 3, 4, 5]), (2, [3, 5]), (50, [5])])
def test_windows_cut_an_epoch_into_equal_parts(tmp_path, log_every, ends):
    stage = make_stage(epochs=2, steps_per_epoch=5)
    reporter = make_reporter(tmp_path, [stage], log_every=log_every)
    for step in range(1, 11):
        reporter.train(step, metrics_of(step))
    steps = [entry["step"] for entry in read_history(tmp_path)]
    assert steps == ends + [5 + end for end in ends]


def test_results(whole):
    results = json.loads((whole / "results.json").read_text())
    assert {name: results[name] for name in ("step", "epoch", "count")} == {
        "step": 12,
        "epoch": 3.0,
        "count": 360,
    }
    assert results | metrics_of(12) == results
    assert results["best"]["step"] == 12
    assert results["parameters"] == 3 * 3 * 3 * 16 + 3 * 3 * 16 * 32 + 330
    assert results["devices"] == jax.device_count()
    assert results["timing"]["images_per_second"] > 0


def test_best_is_not_the_last(tmp_path):
    reporter = make_reporter(tmp_path)
    reporter.start(CONFIG, VARIABLES, jax.devices())
    for step, top1 in ((4, 0.5), (8, 0.9), (12, 0.7)):
        reporter.evaluation(step, {"loss": 1.0, "top1": top1, "top5": 1.0})
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["step"], results["best"]["step"], results["best"]["top1"]) == (12, 8, 0.9)


@pytest.mark.parametrize("killed_after", [3, 4, 7])
def test_an_interrupted_run_reports_the_same(whole, tmp_path, killed_after):
    """Killed, two steps lost, and a line of the history cut short."""
    states = go_on(tmp_path, until=killed_after + 2)
    with open(tmp_path / "history.jsonl", "a", encoding="utf-8") as file:
        file.write('{"split": "train", "st')
    go_on(tmp_path, step=killed_after, saved=states[killed_after])

    history = "history.jsonl"
    assert (tmp_path / history).read_bytes() == (whole / history).read_bytes()
    results, expected = (
        json.loads((folder / "results.json").read_text()) for folder in (tmp_path, whole)
    )
    del results["timing"], expected["timing"]
    assert results == expected
    scalars, expected = read_scalars(tmp_path), read_scalars(whole)
    del scalars["train/images_per_second"], expected["train/images_per_second"]
    assert scalars == expected


def test_tensorboard_scalars_are_the_history(whole):
    scalars = read_scalars(whole)
    assert scalars.keys() == {
        *(f"train/{name}" for name in ("loss", "top1", "top5", "learning_rate")),
        *(f"eval/{name}" for name in ("loss", "top1", "top5")),
        "train/images_per_second",
    }
    for entry in read_history(whole):
        value = scalars[f"{entry['split']}/loss"][entry["step"]]
        assert value == pytest.approx(entry["loss"], rel=1e-6)


def test_lines(tmp_path, capsys):
    go_on(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Devices: 8 × cpu in 1 process") for line in lines)
    assert "step 4/12, epoch 1.0/3: evaluation loss 0.5833, top-1 82.50%, top-5 92.50%" in lines
    [line] = [line for line in lines if line.startswith("step 6/12, epoch 1.5/3: loss 0.5167")]
    assert "images/s" in line
    assert line.endswith("left")
    assert str(tmp_path / "curves.png") in lines[-2]
    assert lines[-1].startswith("Finished at step 12/12, epoch 3.0/3: loss 0.4167, top-1 94.17%")


def test_a_finished_run_started_again_says_its_result(tmp_path, capsys):
    states = go_on(tmp_path)
    capsys.readouterr()
    go_on(tmp_path, step=12, saved=states[12])
    assert "top-1 94.17%" in capsys.readouterr().out.splitlines()[-1]


def test_stages_are_counted_through(tmp_path, capsys):
    stages = [make_stage(epochs=1), make_stage(2, 3, first_step=4, first_epoch=1)]
    reporter = make_reporter(tmp_path, stages, log_every=3)
    for step in range(1, 11):
        reporter.train(step, metrics_of(step))
    assert [(e["step"], e["epoch"]) for e in read_history(tmp_path)] == [(4, 1), (7, 2), (10, 3)]
    assert "step 10/10, epoch 3.0/3" in capsys.readouterr().out


def test_other_processes_print_and_write_nothing(tmp_path, capsys):
    go_on(tmp_path, enabled=False)
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_images_per_second_leave_pauses_and_the_first_step_out(monkeypatch, tmp_path):
    now = [0.0]
    monkeypatch.setattr(reporting.time, "perf_counter", lambda: now[0])
    reporter = make_reporter(tmp_path)
    reporter.start(CONFIG, VARIABLES, jax.devices())
    for step in range(1, 5):
        now[0] += 100.0 if step == 1 else 0.5
        reporter.train(step, metrics_of(step))
        with reporter.pause():
            now[0] += 10.0
    reporter.close()
    rates = read_scalars(tmp_path)["train/images_per_second"]
    assert rates == {2: 8 / 0.5, 4: 8 / 0.5}


def test_profile_traces_a_few_steps(tmp_path):
    stage = make_stage(epochs=3)
    reporter = make_reporter(tmp_path, [stage], profile_steps=2)
    square = jax.jit(lambda x: x @ x)
    for step in range(1, 13):
        square(np.ones((8, 8), np.float32)).block_until_ready()
        reporter.train(step, metrics_of(step))
    reporter.close()
    assert list((tmp_path / "profile").rglob("*.trace.json.gz"))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("count", [1, 60])
def test_curves_of_few_and_of_many_points(tmp_path, count):
    history = [
        {"split": split, "step": n, "epoch": n / 2, "learning_rate": 0.1, **metrics_of(n)}
        for n in range(1, count + 1)
        for split in ("train", "eval")
    ]
    draw_curves(tmp_path / "curves.png", history, title="a run")
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert picture.shape[0] > 500
    colours = np.unique(picture.reshape(-1, 3), axis=0)
    assert ((colours[:, 2] > 180) & (colours[:, 1] < 110)).any()  # red: evaluation is there


def test_what_a_run_can_do_without_does_not_end_it(tmp_path, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise OSError("no space")

    monkeypatch.setattr(reporting, "draw_curves", fail)
    monkeypatch.setattr(events.Events, "write", fail)
    monkeypatch.setattr(events.Events, "flush", fail)
    go_on(tmp_path)
    output = capsys.readouterr().out
    for file in ("curves.png", "events"):
        assert output.count(f"{file} cannot be written (no space); the run goes on") == 1
    assert "Finished" in output and len(read_history(tmp_path)) == 9


def test_titles_of_pictures_are_no_formulas(tmp_path):
    history = [{"split": "eval", "step": 1, "epoch": 1, **metrics_of(1)}]
    draw_curves(tmp_path / "curves.png", history, title=r"runs/$\frac$_{\udcff")
    assert cv2.imread(str(tmp_path / "curves.png")) is not None


def test_parameter_table():
    table = parameter_table(VARIABLES).splitlines()
    assert [line.split() for line in table] == [
        ["module", "parameters", "size"],
        ["head", "330", "1.3", "KiB"],
        ["stage1/block0", "4,608", "18.0", "KiB"],
        ["stem/conv", "432", "1.7", "KiB"],
        ["all", "parameters", "5,370", "21.0", "KiB"],
        ["all", "batch_stats", "16", "64", "B"],
    ]


def test_config_table():
    assert config_table(ConfigDict({"b": {"c": (1, "x")}, "a": None})) == (
        "  a    None\n  b.c  (1, 'x')"
    )


def test_an_evaluation_has_a_file_of_its_own(tmp_path, capsys):
    go_on(tmp_path)
    before = (tmp_path / "results.json").read_text()
    scores = {"step": 8, "epoch": 2.0, "loss": 0.5, "top1": 0.91, "top5": 0.99, "count": 359}
    reporting.report_evaluation(tmp_path, scores, CONFIG)
    crops = ConfigDict(CONFIG.to_dict())
    crops.input.eval_transforms = "ten_crop(8)"
    reporting.report_evaluation(tmp_path, scores, crops)
    assert (tmp_path / "results.json").read_text() == before
    first, second = sorted((tmp_path / "evaluations").iterdir())
    assert first.name.startswith("digits-test-step8-") and first.name != second.name
    found = [json.loads(file.read_text()) for file in (first, second)]
    assert all(each | scores == each for each in found)
    assert {each["eval_transforms"] for each in found} == {"", "ten_crop(8)"}
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Evaluated step 8, epoch 2.0: loss 0.5000, top-1 91.00%, top-5 99.00%")
    assert "359 examples" in last


@pytest.mark.parametrize("lost", ["", "first line", "digit"])
def test_a_damaged_history_is_said_and_the_results_stand(tmp_path, capsys, lost):
    """Of a finished run; the best evaluation is known from the checkpoint."""
    states = go_on(tmp_path)
    expected = json.loads((tmp_path / "results.json").read_text())
    file = tmp_path / "history.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    if lost == "digit":
        lines[0] = lines[0].replace('"step": 2', '"step": 1')
    file.write_text("" if not lost else "".join(lines[lost == "first line" :]))
    capsys.readouterr()
    reporter = make_reporter(tmp_path)
    scores = {**metrics_of(12), "count": 360}
    reporter.start(CONFIG, VARIABLES, jax.devices(), step=12, saved=states[12], scores=scores)
    reporter.close()
    missing = len(lines) - 1 if not lost else 1
    assert f"lacks {missing} of 8 entries before step 12" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    del results["timing"], expected["timing"]
    assert results == expected


def test_evaluations_do_without_tensorboard():
    """Where PyTorch is installed tensorboardX imports it, for seconds."""
    code = "import sys, launch; sys.exit('tensorboardX' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0
