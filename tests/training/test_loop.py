"""The loop on a tiny network and made-up data: stopping, going on, damage, divergence, stages."""

import itertools
import json
import os
import shutil
import signal
import sys
import time
from contextlib import closing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sop.config import get_config, stage_configs
from sop.errors import UsageError
from sop.layers import BatchNorm
from sop.training import memory, task
from sop.training.checkpoints import Checkpoints
from sop.training.history import read_history
from sop.training.loop import evaluate_checkpoint, train
from sop.training.optimizer import make_optimizer
from sop.training.reporting import Reporter
from sop.training.saved import best_step, refuse_converted, steps_in
from sop.training.stages import make_stages
from sop.training.state import init_variables
from sop.training.step import make_mesh, replicated
from sop.training.storage import locate
from sop.training.variables import find_variables, load_variables, save_variables

EXAMPLES, CLASSES = 40, 4
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (EXAMPLES, 4, 4, 3), dtype=np.uint8)
LABELS = RNG.integers(0, CLASSES, EXAMPLES).astype(np.int32)
IDENTITY = {"split": "all", "examples": EXAMPLES, "classes": list("abcd"), "files": "0"}


class Features(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        return nn.relu(BatchNorm(name="bn")(x, train))


class Network(nn.Module):
    classes: int = CLASSES

    @nn.compact
    def __call__(self, x, train):
        x = Features(name="features")(x, train).mean((1, 2))
        return nn.Dense(self.classes, name="classifier")(x)


ROWS = {"image": ((4, 4, 3), np.uint8), "label": ((), np.int32)}


class Train:
    """Shuffled as a function of (seed, step); `on_step(step)` is called before each batch."""

    image_shape = row_shape = (4, 4, 3)
    buckets = (ROWS,)
    identity = IDENTITY

    def __init__(self, config, on_step):
        self.config, self.on_step = config, on_step
        self.steps_per_epoch = EXAMPLES // config.batch_size

    def batches(self, start, first_epoch):
        for step in itertools.count(start):
            self.on_step(step)
            rng = np.random.default_rng((self.config.seed, first_epoch, step))
            rows = rng.permutation(EXAMPLES)[: self.config.batch_size]
            yield {"image": IMAGES[rows], "label": LABELS[rows]}


class Evaluation:
    num_examples = EXAMPLES
    image_shape = row_shape = (4, 4, 3)
    buckets = (ROWS | {"mask": ((), np.bool_)},)
    identity = IDENTITY
    num_examples = EXAMPLES

    def __iter__(self):
        yield {"image": IMAGES, "label": LABELS, "mask": np.ones(EXAMPLES, bool)}


def make_config(**changes):
    config = get_config()
    config.update(
        batch_size=8,
        eval_batch_size=EXAMPLES,
        num_epochs=3,
        log_every_steps=2,
        model={"num_classes": CLASSES},
        input={"normalization": "none"},
        schedule={"name": "constant"},
        checkpoint={"every_steps": 2},
        optimizer={"learning_rate": 0.05},
    )
    config.update(changes)
    return config


def shapes(model):
    return jax.eval_shape(lambda: init_variables(model, 0, (4, 4, 3)))


def evaluate(workdir, which):
    model, config = Network(), make_config()
    arguments = (config, workdir, which, model, shapes(model), Evaluation(), make_mesh())
    return evaluate_checkpoint(*arguments)


def run(workdir, config=None, on_step=lambda step: None, devices=8, model=None):
    """Trains; returns whether it came to the end, and what was said."""
    config = config or make_config()
    workdir.mkdir(exist_ok=True)
    configs = stage_configs(config)
    stages = make_stages(configs, [(Train(each, on_step), Evaluation()) for each in configs])
    model = model or Network()
    reporter = Reporter(workdir, stages, log_every=2)
    said = []
    reporter.say = said.append
    mesh = make_mesh(jax.devices()[:devices])
    variables = shapes(model)
    optimizers = [
        make_optimizer(each.config.optimizer, each.schedule, variables["params"]) for each in stages
    ]
    try:
        done = train(config, workdir, model, stages, optimizers, variables, mesh, reporter)
    finally:
        reporter.close()
    return done, "\n".join(said)


def variables_of(workdir):
    return load_variables(workdir / "checkpoints" / str(newest(workdir)))


def newest(workdir):
    return max(steps_in(workdir))


def assert_same_run(a, b):
    jax.tree.map(np.testing.assert_array_equal, variables_of(a), variables_of(b))
    assert (a / "history.jsonl").read_text() == (b / "history.jsonl").read_text()
    first, second = (json.loads((w / "results.json").read_text()) for w in (a, b))
    first.pop("timing"), second.pop("timing")
    assert first == second


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert run(workdir)[0]
    return workdir


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, whole, number):
    def interrupt(step):
        if step == 6:
            os.kill(os.getpid(), number)

    done, _ = run(tmp_path / "run", on_step=interrupt)
    assert not done
    assert newest(tmp_path / "run") == 7  # the step under way was finished and saved
    done, said = run(tmp_path / "run")
    assert done and "Going on from the checkpoint at step 7" in said
    assert_same_run(whole, tmp_path / "run")


def test_a_signal_while_the_last_checkpoint_is_written_loses_nothing(tmp_path, whole, monkeypatch):
    """What `close` waits for is being written when the signal comes."""

    def end(number, frame):
        raise AssertionError("the signal would have ended the process")

    close = Checkpoints.close

    def interrupted_close(self):
        os.kill(os.getpid(), signal.SIGTERM)
        close(self)

    monkeypatch.setattr(Checkpoints, "close", interrupted_close)
    previous = signal.signal(signal.SIGTERM, end)
    try:
        done, _ = run(tmp_path / "run")
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert done and newest(tmp_path / "run") == 15
    assert_same_run(whole, tmp_path / "run")


def test_a_signal_before_the_first_step_ends_the_process(tmp_path, monkeypatch, capfd):
    """`end` is made to raise, in the thread that answers; the run goes on here."""
    ends = []
    monkeypatch.setattr("sop.interruption.end", ends.append)

    def interrupt(step):
        if step == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + 10
            while not ends and time.monotonic() < deadline:
                time.sleep(0.001)

    run(tmp_path / "run", on_step=interrupt)
    assert ends == [signal.SIGTERM]
    assert "Stopped by SIGTERM: nothing to save." in capfd.readouterr().err


def test_what_is_mixed_is_the_same_after_a_crash(tmp_path):
    config = make_config(batch_size=16, mixup=0.4, cutmix=1.0)

    def crash(step):
        if step == 3:
            raise KeyError("crash")

    assert run(tmp_path / "whole", config)[0]
    with pytest.raises(KeyError, match="crash"):
        run(tmp_path / "run", config, on_step=crash)
    assert run(tmp_path / "run", config)[0]
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_crash_between_checkpoints_changes_nothing(tmp_path, whole):
    def crash(step):
        if step == 11:
            raise KeyError("crash")

    with pytest.raises(KeyError, match="crash"):
        run(tmp_path / "run", on_step=crash)
    assert newest(tmp_path / "run") == 10
    assert run(tmp_path / "run")[0]
    assert_same_run(whole, tmp_path / "run")


def test_in_a_bucket_a_run_goes_on_as_on_a_disk(storage, tmp_path):
    """After a crash, a checkpoint of which a kill left a part, and one that was damaged."""
    config = make_config(num_epochs=4)
    config.checkpoint.every_steps = None
    workdir, objects = locate("gs://stand-in/loop/run"), storage.buckets["stand-in"]
    folder = "loop/run/checkpoints"

    def crash(step):
        if step == 16:
            raise KeyError("crash")

    with pytest.raises(KeyError, match="crash"):
        run(workdir, config, on_step=crash)
    assert steps_in(workdir) == [5, 10, 15]
    del objects[f"{folder}/15/commit_success.txt"]
    objects[f"{folder}/10/progress/metadata"] = 10**9, b"{"
    assert steps_in(workdir) == [5, 10]

    def look(step):
        assert step > 5 or not any(name.startswith(f"{folder}/15/") for name in objects)

    done, said = run(workdir, config, on_step=look)
    assert done and "Checkpoint 10" in said and "Going on from the checkpoint at step 5" in said
    assert f"{folder}/damaged-10/commit_success.txt" in objects
    assert run(tmp_path / "run", config)[0]
    assert_same_run(tmp_path / "run", workdir)


def test_a_finished_run_is_left_as_it_is(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")

    def refuse(step):
        raise AssertionError("trained again")

    assert run(tmp_path / "run", on_step=refuse)[0]
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize(
    "victim", ["variables/manifest.ocdbt", "progress/metadata", "checksums.json"]
)
def test_a_damaged_checkpoint_is_reported_and_passed_over(tmp_path, whole, victim):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "15" / victim).write_bytes(b"\x00\xff")
    done, said = run(tmp_path / "run")
    assert done
    assert "Checkpoint 15" in said and "is damaged" in said and "step 14" in said
    assert (tmp_path / "run" / "checkpoints" / "damaged-15").is_dir()
    assert_same_run(whole, tmp_path / "run")


def flip_a_bit(file, place=0.5):
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize("item", ["variables", "optimizer"])
def test_a_flipped_bit_is_noticed(tmp_path, whole, item):
    """By training, which goes on from the checkpoint before, and whoever reads the weights."""
    shutil.copytree(whole, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "15"
    files = (file for file in (step / item).rglob("*") if file.is_file())
    largest = max(files, key=lambda file: file.stat().st_size)
    flip_a_bit(largest)
    if item == "variables":
        with pytest.raises(UsageError, match="is not as it was written"):
            load_variables(step)
        with pytest.raises(UsageError, match="No readable checkpoint"):
            evaluate(tmp_path / "run", "15")
        assert evaluate(tmp_path / "run", "latest")["step"] == 14
    done, said = run(tmp_path / "run")
    assert done and "is not as it was written" in said and "step 14" in said
    assert_same_run(whole, tmp_path / "run")


def test_a_checkpoint_of_before_there_were_checksums_is_read(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "15" / "checksums.json").unlink()
    done, said = run(tmp_path / "run")
    assert done and "Checkpoint 15" in said and "no checksums" in said
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize("content", [None, b"", b'{"top1": 1.0, "crc32": 1}', "a folder"])
def test_scores_that_are_damaged_do_not_make_another_checkpoint_the_best(tmp_path, whole, content):
    shutil.copytree(whole, tmp_path / "run")
    best = best_step(whole)
    scores = tmp_path / "run" / "checkpoints" / str(best) / "scores.json"
    scores.unlink()
    if content == "a folder":
        scores.mkdir()
    elif content is not None:
        scores.write_bytes(content)
    assert evaluate(tmp_path / "run", "best")["step"] == best  # as the history knows
    (tmp_path / "run" / "history.jsonl").unlink()
    said = []
    arguments = (make_config(), tmp_path / "run", "best", Network(), shapes(Network()))
    found = evaluate_checkpoint(*arguments, Evaluation(), make_mesh(), say=said.append)
    assert found["step"] != best
    assert any(f"The scores of checkpoint {best}" in sentence for sentence in said)


def test_a_run_killed_in_an_evaluation_makes_up_for_it(tmp_path, whole, monkeypatch):
    """The checkpoint is there before its evaluation begins."""

    def crash(*arguments):
        raise KeyError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(task, "evaluate", crash)
        with pytest.raises(KeyError, match="killed"):
            run(tmp_path / "run")
    assert newest(tmp_path / "run") == 5
    assert run(tmp_path / "run")[0]
    assert_same_run(whole, tmp_path / "run")


def test_strange_names_are_no_checkpoints(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    for name in ("-1", "1e3", "16.tmp"):
        (tmp_path / "run" / "checkpoints" / name).mkdir()
    assert run(tmp_path / "run")[0]
    assert_same_run(whole, tmp_path / "run")
    for name in ("²", "٣", "99"):
        (tmp_path / "run" / "checkpoints" / name).write_text("a file")
        with pytest.raises(UsageError, match=f"{name} is no checkpoint"):
            run(tmp_path / "run")
        with pytest.raises(UsageError, match=f"{name} is no checkpoint"):
            evaluate(tmp_path / "run", "latest")
        (tmp_path / "run" / "checkpoints" / name).unlink()


def test_when_every_checkpoint_is_damaged_nothing_is_overwritten(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*/progress/metadata"):
        path.write_bytes(b"")
    with pytest.raises(UsageError, match="None of the checkpoints"):
        run(tmp_path / "run")


def test_the_newest_and_the_best_are_kept(whole):
    names = {int(n) for n in os.listdir(whole / "checkpoints") if n.isdigit()}
    evaluations = [e for e in read_history(whole) if e["split"] == "eval"]
    best = max(evaluations, key=lambda e: (e["top1"], e["step"]))["step"]
    assert names == {12, 14, 15} | {best}
    assert best_step(whole) == best


def test_a_checkpoint_of_eight_devices_goes_on_on_one_and_back(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    for step in ("14", "15"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / step)
    assert run(tmp_path / "run", devices=1)[0]
    for step in ("14", "15"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / step)
    assert run(tmp_path / "run", devices=8)[0]
    assert_same_run(whole, tmp_path / "run")


def test_a_diverged_run_stops_names_the_step_and_keeps_the_good_checkpoint(tmp_path):
    config = make_config(optimizer={"learning_rate": 1e30}, checkpoint={"every_steps": 1})
    with pytest.raises(UsageError, match=r"in training step \d+ .*last good checkpoint is 1 "):
        run(tmp_path / "run", config)
    assert newest(tmp_path / "run") == 1
    for leaf in jax.tree.leaves(variables_of(tmp_path / "run")):
        assert np.isfinite(leaf).all()


def test_another_model_is_refused(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(UsageError, match=r"of another model: .*classifier.*shape"):
        run(tmp_path / "run", model=Network(classes=7))
    assert newest(tmp_path / "run") == 15


def test_evaluating_checkpoints(whole):
    entries = {e["step"]: e for e in read_history(whole) if e["split"] == "eval"}
    for which in ("latest", "15"):
        scores = evaluate(whole, which)
        assert scores["epoch"] == 3.0
        for name in ("step", "loss", "top1", "top5", "count"):
            assert scores[name] == entries[15][name]
    with pytest.raises(UsageError, match="no checkpoint '3'"):
        evaluate(whole, "3")


def test_evaluating_closes_what_it_opened(whole, monkeypatch):
    closed = []
    close = Checkpoints.close
    monkeypatch.setattr(Checkpoints, "close", lambda self: closed.append(close(self)))
    evaluate(whole, "latest")
    assert len(closed) == 1


def test_evaluating_an_empty_folder(tmp_path):
    with pytest.raises(UsageError, match="no checkpoint in"):
        evaluate(tmp_path, "best")
    assert not any(tmp_path.iterdir())


STAGES = (
    {"num_epochs": 2, "optimizer": {"frozen": ("features",), "learning_rate": 0.5}},
    {"num_epochs": 1, "batch_size": 16},
)


def test_two_stages_and_stopping_at_the_border(tmp_path):
    config = make_config(stages=STAGES)
    assert run(tmp_path / "whole", config)[0]
    assert newest(tmp_path / "whole") == 2 * 5 + 2  # batches of 8, then of 16
    border = load_variables(tmp_path / "whole" / "checkpoints" / "10")
    start = init_variables(Network(), config.seed, (4, 4, 3))
    jax.tree.map(
        np.testing.assert_array_equal, border["params"]["features"], start["params"]["features"]
    )
    jax.tree.map(np.testing.assert_array_equal, border["batch_stats"], start["batch_stats"])
    after = variables_of(tmp_path / "whole")["params"]["features"]["conv"]["kernel"]
    assert not np.array_equal(after, border["params"]["features"]["conv"]["kernel"])

    for last in (9, 10):  # a stop in the last step of the first stage; in the first of the second
        calls = iter(range(100))

        def interrupt(step, calls=calls, last=last):
            if next(calls) == last:
                os.kill(os.getpid(), signal.SIGTERM)

        workdir = tmp_path / f"stopped{last}"
        assert not run(workdir, config, on_step=interrupt)[0]
        assert run(workdir, config)[0]
        assert_same_run(tmp_path / "whole", workdir)


def test_a_stage_that_keeps_momentum_goes_on_as_the_one_before(tmp_path, monkeypatch):
    """Where the border changes nothing else, two stages end where one does."""
    ends = []
    for name, keep in (("kept", True), ("fresh", False)):
        again = {"num_epochs": 1, "optimizer": {"keep_momentum": keep}}
        run(tmp_path / name, make_config(stages=({"num_epochs": 1}, again)))
        ends.append(variables_of(tmp_path / name)["params"])

    class AsInTwo(Train):
        def batches(self, start, first_epoch):
            length = self.steps_per_epoch
            yield from itertools.islice(super().batches(0, 0), start, length)
            yield from super().batches(max(start - length, 0), 1)

    monkeypatch.setattr(sys.modules[__name__], "Train", AsInTwo)
    run(tmp_path / "one", make_config(num_epochs=2))
    one = variables_of(tmp_path / "one")["params"]
    jax.tree.map(np.testing.assert_array_equal, ends[0], one)
    assert not np.array_equal(ends[1]["classifier"]["kernel"], one["classifier"]["kernel"])


def test_starting_from_another_runs_weights(tmp_path, whole):
    config = make_config(
        init_from=str(whole), optimizer={"frozen": ("features",)}, model={"num_classes": 6}
    )
    done, said = run(tmp_path / "run", config, model=Network(classes=6))
    assert done and "classifier is of another shape there and starts anew" in said
    best = load_variables(whole)
    jax.tree.map(
        np.testing.assert_array_equal,
        variables_of(tmp_path / "run")["params"]["features"],
        best["params"]["features"],
    )


def test_averages_are_kept_evaluated_and_taken_up_again(tmp_path, whole):
    """By an interrupted run too, bit for bit; the run itself goes on as without them."""
    config = make_config(ema_decay=0.9)

    def interrupt(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    assert run(tmp_path / "whole", config)[0]
    assert not run(tmp_path / "run", config, on_step=interrupt)[0]
    assert run(tmp_path / "run", config)[0]
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    newest_of = "checkpoints/15"
    averages = [load_variables(tmp_path / each / newest_of / "ema") for each in ("whole", "run")]
    jax.tree.map(np.testing.assert_array_equal, *averages)
    plain = variables_of(whole)
    jax.tree.map(np.testing.assert_array_equal, variables_of(tmp_path / "run"), plain)
    assert jax.tree.map(np.shape, averages[0]) == jax.tree.map(np.shape, plain)

    save_variables(tmp_path / "average", averages[0])
    alone, both = evaluate(tmp_path / "average", "best"), evaluate(tmp_path / "run", "15")
    assert {key: both[f"ema_{key}"] for key in ("loss", "top1", "top5")} == {
        key: alone[key] for key in ("loss", "top1", "top5")
    }
    entry = [e for e in read_history(tmp_path / "run") if e["split"] == "eval"][-1]
    assert entry["ema_loss"] == both["ema_loss"] != both["loss"]
    assert evaluate(tmp_path / "run", "15/ema") == both
    assert find_variables(tmp_path / "run" / "ema")
    with closing(Checkpoints(tmp_path / "run", read_only=True)) as checkpoints:
        restored = checkpoints.restore_variables("15/ema", replicated(make_mesh()))[0]
    jax.tree.map(np.testing.assert_array_equal, restored, averages[0])
    with pytest.raises(UsageError, match=r"No averages were saved in .*leave '/ema' out"):
        find_variables(whole / "ema")


def test_weights_are_taken_from_the_next_checkpoint_where_the_best_is_damaged(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    best = tmp_path / "run" / "checkpoints" / str(best_step(whole))
    (best / "variables" / "manifest.ocdbt").write_bytes(b"")
    assert find_variables(tmp_path / "run")[0] == best
    load_variables(tmp_path / "run")
    with pytest.raises(UsageError, match="can be read"):
        load_variables(best)


def test_weights_of_another_backbone_are_refused(tmp_path):
    variables = init_variables(Network(), 0, (4, 4, 3))
    variables["params"]["features"]["conv"]["kernel"] = jnp.zeros((5, 5, 3, 4))
    save_variables(tmp_path / "other", jax.device_get(variables))
    config = make_config(init_from=str(tmp_path / "other"))
    with pytest.raises(UsageError, match=r"does not fit this model: in features, .*conv/kernel"):
        run(tmp_path / "run", config)


def test_converted_variables_can_be_evaluated(tmp_path, whole):
    save_variables(tmp_path / "converted", variables_of(whole))
    scores = evaluate(tmp_path / "converted", "best")
    entry = [e for e in read_history(whole) if e["split"] == "eval"][-1]
    assert (scores["step"], scores["epoch"]) == (0, 0.0)
    assert scores["loss"] == entry["loss"]
    with pytest.raises(UsageError, match=r"converted weights: .*init_from"):
        refuse_converted(tmp_path / "converted")
    refuse_converted(whole)
    with pytest.raises(UsageError, match="already has checkpoints"):
        save_variables(tmp_path / "converted", variables_of(whole))


def test_steps_beyond_memory_are_refused_before_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda devices, host: 10**3)
    steps = []
    with pytest.raises(UsageError, match=r"batch_size = 8 needs .* a device has 1 kB: set a smal"):
        run(tmp_path / "run", on_step=steps.append)
    assert not steps


def test_both_steps_are_compiled_before_the_first_and_not_again(tmp_path):
    compiled, counts = [], []

    def count(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        run(tmp_path / "run", on_step=lambda step: counts.append(len(compiled)))
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert 0 < counts[0] == counts[-1]
