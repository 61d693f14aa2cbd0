"""The config of a detector is written down whole, so that a later default changes no old run."""

import dataclasses

import pytest

from configs import detection, digit_scenes
from sop.config.validation import as_json
from sop.detection import DETECTORS, FasterRCNN, create_detector, resolve
from sop.errors import UsageError
from sop.training import durable, workdir
from sop.training.workdir import WorkDir, with_whole_model

CONFIG = digit_scenes.get_config("faster")
EXPERIMENTS = [(file, name) for file in (digit_scenes, detection) for name in file.EXPERIMENTS]


@pytest.mark.parametrize(("file", "name"), EXPERIMENTS)
def test_what_is_written_out_says_the_same(file, name):
    written = resolve(file.get_config(name).model)
    assert resolve(written) == written
    assert as_json(resolve(as_json(written))) == as_json(written)


def defaults(name):
    kind = DETECTORS[name]
    hidden = ("features", "num_classes", "dtype", "axis_name", "parent", "name")
    options = (each.name for each in dataclasses.fields(kind) if each.name not in hidden)
    return {each: getattr(kind, each) for each in options if getattr(kind, each) is not None}


@pytest.mark.parametrize("name", DETECTORS)
def test_all_defaults_are_there(name):
    found = resolve({"backbone": "resnet18", "num_classes": 4, "detector": name})
    assert found["detector"] == {"name": name, **defaults(name)} and len(defaults(name)) > 10
    assert "representation" not in found and found["attention"] == {"name": "none"}


@pytest.fixture
def folder(tmp_path):
    """A work folder with a checkpoint, and a config that leaves options to defaults."""
    with WorkDir(tmp_path) as found:
        (found.path / "checkpoints" / "22").mkdir(parents=True)
        durable.write_json(found.path / "config.json", as_json(CONFIG))
        yield found


def test_an_old_run_goes_on_and_is_written_down_whole(folder):
    whole = with_whole_model(CONFIG)
    folder.settle_config(whole)
    assert workdir.read_config(folder.path) == as_json(whole) != as_json(CONFIG)
    workdir.refuse_another_model(folder.path, CONFIG)
    whole.model.detector.overlap = 0.3
    with pytest.raises(UsageError, match=r"model\.detector\.overlap was 0\.5, is 0\.3"):
        folder.settle_config(whole)


def test_another_default_changes_no_run(folder, monkeypatch):
    class Later(FasterRCNN):
        overlap: float = 0.25

    folder.settle_config(with_whole_model(CONFIG))
    monkeypatch.setitem(DETECTORS, "faster_rcnn", Later)
    assert create_detector(CONFIG.model).overlap == 0.25
    assert create_detector(workdir.run_config(folder.path).model).overlap == 0.5
    with pytest.raises(UsageError, match=r"model\.detector\.overlap was 0\.5, is 0\.25"):
        folder.settle_config(with_whole_model(CONFIG))
