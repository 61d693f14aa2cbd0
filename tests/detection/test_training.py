"""A detector is trained, stopped, taken up again and evaluated as every network."""

import json
import shutil

import jax
import numpy as np
import pytest

import main
from configs import digit_scenes
from sop.config import check
from sop.detection import create_detector
from sop.errors import UsageError
from sop.training.checkpoints import load_variables
from sop.training.history import read_history
from tests.detection.small import ARGUMENTS


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The work folder of a short run."""
    folder = tmp_path_factory.mktemp("runs") / "scenes"
    main.main([*ARGUMENTS, f"--workdir={folder}"])
    return folder


def results(folder):
    found = json.loads((folder / "results.json").read_text())
    del found["timing"]
    return found


def test_a_run_leaves_scores(whole):
    history = read_history(whole)
    losses = [entry for entry in history if entry["split"] == "train"]
    assert losses[-1]["loss"] < losses[0]["loss"]
    parts = losses[-1]["classification"] + losses[-1]["box"]
    assert losses[-1]["loss"] == pytest.approx(parts, rel=1e-4)
    found = results(whole)
    assert 0 <= found["AP"] <= found["AP50"] <= 1 and found["count"] == 24
    assert set(found["per_class"]) == set("0123456789")
    assert found["best"]["AP"] == max(e["AP"] for e in history if e["split"] == "eval")
    assert (whole / "curves.png").stat().st_size > 5000


def test_a_killed_run_goes_on_as_if_it_never_stopped(whole, tmp_path):
    """All of the last epoch is lost, and what was reported of it is there already."""
    folder = tmp_path / "again"
    shutil.copytree(whole, folder)
    steps = sorted(int(path.name) for path in (folder / "checkpoints").iterdir())
    shutil.rmtree(folder / "checkpoints" / str(steps[-1]))
    main.main([*ARGUMENTS, f"--workdir={folder}"])
    assert (folder / "history.jsonl").read_bytes() == (whole / "history.jsonl").read_bytes()
    assert results(folder) == results(whole)
    variables = (load_variables(each / "checkpoints" / str(steps[-1])) for each in (folder, whole))
    jax.tree.map(np.testing.assert_array_equal, *variables)


def test_evaluating_gives_the_same_scores(whole, capsys):
    main.main(["--mode=eval", f"--workdir={whole}", "--checkpoint=latest"])
    [file] = (whole / "evaluations").glob("*.json")
    found, trained = json.loads(file.read_text()), results(whole)
    for name in ("AP", "AP50", "VOC_AP", "per_class"):
        assert found[name] == trained[name]
    assert "AP50" in capsys.readouterr().out


@pytest.mark.parametrize("name", digit_scenes.EXPERIMENTS)
def test_configs_are_ones_that_runs_take(name):
    config = digit_scenes.get_config(name)
    check(config)
    create_detector(config.model)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--config.input.train_transforms=resize_pad(64, 64)|resize_pad(96, 64)", "two sizes"),
        ("--config.input.train_transforms=flip", "end in resize"),
        ("--config.input.train_transforms=random_resized_crop(64)", "random_resized_crop"),
        ("--config.input.cache=True", "cache"),
        ("--config.input.dataset=digits", "boxes"),
        ("--config.model.num_classes=3", "num_classes"),
        ("--config.model.detector.overlap=two", "overlap"),
        ("--config.remat=True", "remat"),
    ],
)
def test_refusals_are_one_sentence_and_touch_nothing(option, message, tmp_path):
    import launch
    from sop.config.command_line import load

    config = load("configs/digit_scenes.py")
    key, _, value = option.removeprefix("--config.").partition("=")
    *groups, last = key.split(".")
    group = config
    for each in groups:
        group = group[each]
    value = {"True": True, "3": 3}.get(value, value)
    with group.unlocked(), config.unlocked():
        group[last] = value
    with pytest.raises(UsageError, match=message):
        launch.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
