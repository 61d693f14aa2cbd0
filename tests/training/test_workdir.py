"""The work folder: who may use it, and with which config."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sop.config import get_config
from sop.config.validation import as_json
from sop.errors import UsageError
from sop.models import resolve
from sop.training import durable, workdir
from sop.training.workdir import WorkDir
from tests.launch import environment


def config(**changes):
    config = get_config()
    base = {
        "model.backbone": "resnet20",
        "model.num_classes": 10,
        "input.dataset": "digits",
        "schedule.name": "cosine",
        "schedule.boundaries": (1, 2),
        "num_epochs": 3,
        "log_every_steps": 10,
    }
    config.update_from_flattened_dict(base | changes)
    return config


@pytest.fixture
def folder(tmp_path):
    """In use, with a checkpoint of an earlier version, which does not hold the config."""
    used = WorkDir(tmp_path / "deep" / "run")
    used.settle_config(config())
    (used.path / "checkpoints" / "22").mkdir(parents=True)
    yield used
    used.close()


def test_makes_the_folder_and_writes_the_config(folder):
    folder.settle_config(config())
    saved = json.loads((folder.path / "config.json").read_text())
    assert (saved["schedule"]["boundaries"], saved["num_epochs"]) == ([1, 2], 3)
    assert workdir.read_config(folder.path) == saved


def test_the_same_config_goes_on(folder):
    folder.settle_config(config())
    before = (folder.path / "config.json").stat().st_mtime_ns
    folder.settle_config(config())
    assert (folder.path / "config.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("content", [None, b"", b"[1]", b'{"seed": 0', b"\xff"])
def test_a_run_whose_config_is_lost_does_not_go_on_with_another(folder, content):
    if content is None:
        (folder.path / "config.json").unlink()
    else:
        (folder.path / "config.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"config\.json"):
        folder.settle_config(config(seed=1))


def test_the_config_of_the_newest_checkpoint_goes_before_the_file(folder):
    """Which may be lost, or changed by hand."""
    progress = folder.path / "checkpoints" / "22" / "progress" / "metadata"
    progress.parent.mkdir()
    durable.write_json(progress, {"config": workdir.read_config(folder.path)})
    for content in (None, json.dumps({"seed": 1})):
        (folder.path / "config.json").unlink(missing_ok=True)
        if content:
            (folder.path / "config.json").write_text(content)
        with pytest.raises(UsageError, match="seed was 0, is 1"):
            folder.settle_config(config(seed=1))
        folder.settle_config(config())


def test_free_keys_may_change_and_are_noted(folder):
    folder.settle_config(config())
    changes = {"input.num_workers": 0, "log_every_steps": 1, "checkpoint.keep": 9}
    folder.settle_config(config(**changes))
    saved = workdir.read_config(folder.path)
    assert (saved["input"]["num_workers"], saved["checkpoint"]["keep"]) == (0, 9)


def test_each_differing_key_is_named_with_both_values(folder):
    folder.settle_config(config())
    changes = {"model.backbone": "resnet32", "input.dataset": "cifar10", "log_every_steps": 1}
    with pytest.raises(UsageError) as refusal:
        folder.settle_config(config(**changes))
    sentence = str(refusal.value)
    assert "model.backbone was 'resnet20', is 'resnet32'" in sentence
    assert "input.dataset was 'digits', is 'cifar10'" in sentence
    assert "log_every_steps" not in sentence
    assert workdir.read_config(folder.path)["log_every_steps"] == 10


def test_a_run_that_never_saved_may_start_with_another_config(tmp_path):
    folder = WorkDir(tmp_path)
    folder.settle_config(config())
    (tmp_path / "checkpoints" / "damaged-22").mkdir(parents=True)
    folder.settle_config(config(**{"input.dataset": "cifar10"}))
    assert workdir.read_config(tmp_path)["input"]["dataset"] == "cifar10"
    folder.close()


def test_an_option_that_only_one_config_has_is_named(folder):
    folder.settle_config(config())
    more = config()
    more.model.dropout = 0.5
    with pytest.raises(UsageError, match=r"model\.dropout was None, is 0\.5"):
        folder.settle_config(more)


def test_a_config_of_before_a_key_existed_means_its_default(folder):
    folder.settle_config(config())
    saved = workdir.read_config(folder.path)
    del saved["label_smoothing"], saved["model"]["pool"]
    saved["model"]["attention"] = {"name": "gsop", "placement": "last", "where": "conv"}
    durable.write_json(folder.path / "config.json", saved)
    same = config()
    same.model.attention = {"name": "gsop", "blocks": "last", "after": "conv"}
    folder.settle_config(same)
    saved = workdir.read_config(folder.path)
    assert saved["label_smoothing"] == 0 and saved["model"]["attention"]["blocks"] == "last"
    del saved["label_smoothing"]
    durable.write_json(folder.path / "config.json", saved)
    same.label_smoothing = 0.1
    with pytest.raises(UsageError, match=r"label_smoothing was 0\.0, is 0\.1"):
        folder.settle_config(same)


@pytest.mark.parametrize(
    ("schedule", "stages", "allowed"),
    [("cosine", (), False), ("step", (), True), ("step", ({"batch_size": 2},), False)],
)
def test_a_run_may_be_prolonged_where_nothing_stretches(folder, schedule, stages, allowed):
    fixed = {"schedule.name": schedule, "stages": stages}
    durable.write_json(folder.path / "config.json", as_json(config(**fixed)))
    longer = config(**fixed, num_epochs=5)
    if allowed:
        folder.settle_config(longer)
        assert workdir.read_config(folder.path)["num_epochs"] == 5
    else:
        with pytest.raises(UsageError, match=r"num_epochs was 3, is 5"):
            folder.settle_config(longer)


def test_equal_networks_spelled_differently_are_the_same(folder):
    short = config(**{"model.backbone": "resnet14_cifar", "model.representation.name": "mpncov"})
    short.model.attention = {"name": "gsop", "dim": 16}
    saved = as_json(short)
    saved["model"]["attention"]["placement"] = "last"  # as earlier versions called it
    durable.write_json(folder.path / "config.json", saved)
    long = config(**{"model.backbone": "resnet14_cifar"})
    long.model = resolve(short.model)
    folder.settle_config(long)
    assert workdir.read_config(folder.path) == as_json(long)
    workdir.refuse_another_model(folder.path, short)
    assert workdir.run_config(folder.path).model.representation.num_iters == 3
    short.model.attention.dim = 32
    with pytest.raises(UsageError, match=r"model\.attention\.dim was 16, is 32"):
        workdir.refuse_another_model(folder.path, short)


def test_the_config_of_a_run_is_checked(folder):
    for changes, sentence in (
        ({"batch_size": -1}, r"cannot be used \(config.batch_size is -1"),
        ({"optimizer": 3}, r"cannot be used \(config.optimizer is 3"),
    ):
        durable.write_json(folder.path / "config.json", {**as_json(config()), **changes})
        with pytest.raises(UsageError, match=sentence):
            workdir.run_config(folder.path)


def test_evaluation_needs_the_same_model_only(folder):
    folder.settle_config(config())
    workdir.refuse_another_model(folder.path, config(**{"input.dataset": "cifar10"}))
    with pytest.raises(UsageError, match=r"model\.num_classes was 10, is 100"):
        workdir.refuse_another_model(folder.path, config(**{"model.num_classes": 100}))


def test_converted_weights_have_no_config(folder):
    workdir.refuse_another_model(folder.path, config())


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"holds no run"):
        workdir.refuse_another_model(tmp_path, config())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json cannot be read"):
        workdir.read_config(tmp_path)


@pytest.mark.parametrize("path", ["file", "file/below", "/proc/none", "s3://bucket/run", "gs://"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, path):
    (tmp_path / "file").touch()
    where = path if path.startswith("/") or "://" in path else tmp_path / path
    with pytest.raises(UsageError, match=r"another --workdir|names no folder"):
        WorkDir(where)


def test_a_live_run_keeps_others_out_and_a_killed_one_does_not(tmp_path):
    program = (
        "import sys, time\n"
        "from sop.training.workdir import WorkDir\n"
        "folder = WorkDir(sys.argv[1])\n"
        "print('in', flush=True)\n"
        "time.sleep(100)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "in\n"
        with pytest.raises(UsageError, match=rf"in use by a live run \(process {process.pid} on"):
            WorkDir(tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    WorkDir(tmp_path).close()


def test_the_lock_ends_with_the_context(tmp_path):
    def descriptors():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    with WorkDir(tmp_path), pytest.raises(UsageError, match="in use by a live run"):
        WorkDir(tmp_path)
    assert descriptors() == before
    WorkDir(tmp_path).close()


def test_a_file_is_replaced_whole(tmp_path):
    durable.write_atomically(tmp_path / "a", "one")
    durable.write_json(tmp_path / "a", {"two": 2})
    assert json.loads((tmp_path / "a").read_text()) == {"two": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


IDENTITY = {"split": "train", "examples": 6, "classes": ["ant", "cat"], "files": "1f"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"examples": 7}, "split 'train', there were 6 examples, now 7"),
        ({"classes": ["bee", "cat"], "files": "2f"}, "class 0 was 'ant', is 'bee'"),
        ({"classes": ["ant"]}, "there were 2 classes, now 1"),
        ({"files": "2f"}, "files have other names or sizes"),
    ],
)
@pytest.mark.parametrize("part", ["train", "evaluation"])
def test_changed_data_are_refused(folder, part, change, said):
    same = {"train": IDENTITY, "evaluation": IDENTITY}
    folder.settle_data([same])  # an earlier version's checkpoint does not know
    progress = folder.path / "checkpoints" / "22" / "progress" / "metadata"
    progress.parent.mkdir()
    present = workdir.read_config(folder.path)
    durable.write_json(progress, {"config": present, "data": [same]})
    changed = [{**same, part: {**IDENTITY, **change}}]
    if said is None:
        folder.settle_data(changed)
    else:
        with pytest.raises(UsageError, match=said):
            folder.settle_data(changed)
    if part == "evaluation":
        return
    if said and "class" in said:
        with pytest.raises(UsageError, match=said):
            workdir.refuse_moved_classes(folder.path, config(), changed[0]["train"])
    workdir.refuse_moved_classes(folder.path, config(), IDENTITY)
    other = config(**{"input.dataset": "other"})
    workdir.refuse_moved_classes(folder.path, other, changed[0]["train"])
