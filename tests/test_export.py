"""A run as a program and as weights that others read."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import main as program
import sop
from sop import export
from sop.detection import __main__ as find
from sop.errors import UsageError
from sop.training import pretrained
from sop.training.variables import load_variables


@pytest.fixture(scope="module")
def folder(digits_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "digits"
    export.main([f"--workdir={digits_run}", f"--out={out}", "--image_size=8"])
    return out


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


def test_the_program_alone_gives_the_runs_logits(folder, digits_run, images):
    again = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    assert again.platforms == ("cpu", "cuda", "tpu")
    expected = sop.load(digits_run).predict(images).logits
    np.testing.assert_allclose(again.call(images), expected, atol=1e-5 * abs(expected).max())


def test_the_folder_is_a_run_again(folder, digits_run, images):
    run, again = sop.load(digits_run), sop.load(folder)
    assert (again.step, again.epoch, again.class_names) == (run.step, run.epoch, run.class_names)
    np.testing.assert_array_equal(again.predict(images).logits, run.predict(images).logits)
    jax.tree.map(np.testing.assert_array_equal, again.variables, run.variables)


def test_weights_have_the_originals_names(folder):
    assert {"conv1.weight", "layer1.0.bn1.running_var"} <= load_file(
        folder / "model.safetensors"
    ).keys()


def test_the_card_says_what_it_is(folder):
    card = (folder / "README.md").read_text()
    for said in ("resnet8_cifar", "digits", "top-1", "sop.load", "8×8", "licence"):
        assert said in card


def test_training_starts_from_it(folder, digits_run, tmp_path, capsys):
    pretrained.find(str(folder))
    loaded = pretrained.load(str(folder))
    jax.tree.map(np.testing.assert_array_equal, loaded, load_variables(digits_run))
    flags = [f"--config.init_from={folder}", "--config.num_epochs=1", "--config.batch_size=80"]
    program.main([f"--workdir={tmp_path / 'run'}", "--config.optimizer.learning_rate=1e-9", *flags])
    assert "Finished" in capsys.readouterr().out


@pytest.fixture(scope="module")
def detector(scenes_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "scenes"
    export.main([f"--workdir={scenes_run}", f"--out={out}"])
    return out


def test_the_program_of_a_detector_finds_what_the_run_finds(detector, scenes_run):
    again = jax.export.deserialize(bytearray((detector / "model.stablehlo").read_bytes()))
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    said = again.call(images, np.float32([[64, 64], [40, 50]]))
    [found] = sop.load(scenes_run).detect(images[0])
    valid = np.asarray(said["valid"][0])
    assert valid.sum() == len(found.scores) > 0
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_allclose(said[name][0][valid], getattr(found, name), rtol=1e-4, atol=1e-3)
    boxes = np.asarray(said["boxes"][1][said["valid"][1]])
    assert len(boxes) and (boxes <= [50, 40, 50, 40]).all()  # padding holds nothing


def test_a_check_that_finds_nothing_says_so(scenes_run):
    loaded = sop.load(scenes_run, changes={"model.detector.score_threshold": 0.99})
    serialized = export.program(loaded, (64, 64, 3)).serialize()
    assert export.check(serialized, loaded, (64, 64, 3)) is None


def test_the_folder_of_a_detector_is_a_run_again(detector, scenes_run, tmp_path, capsys):
    run, again = sop.load(scenes_run), sop.load(detector)
    assert (again.step, again.class_names) == (run.step, run.class_names)
    jax.tree.map(np.testing.assert_array_equal, again.variables, run.variables)
    assert "params/boxes0/kernel" in load_file(detector / "model.safetensors")
    card = (detector / "README.md").read_text()
    for said in ("ssd on resnet8_cifar", "AP50", "run.detect", "64×64", "paths that Flax has"):
        assert said in card
    find.main([f"--workdir={detector}", f"--out={tmp_path}", "--count=1"])
    assert "in 1 images" in capsys.readouterr().out
    loaded = pretrained.load(str(detector))
    jax.tree.map(np.testing.assert_array_equal, loaded, load_variables(scenes_run))


def test_refusals(folder, digits_run, tmp_path):
    with pytest.raises(UsageError, match="is not empty"):
        export.main([f"--workdir={digits_run}", f"--out={folder}"])
    with pytest.raises(UsageError, match="name the side of a square"):
        export.main([f"--workdir={digits_run}", f"--out={tmp_path / 'new'}"])
    with pytest.raises(UsageError, match="holds no run"):
        export.main([f"--workdir={tmp_path}", f"--out={tmp_path / 'new'}"])
    assert not (tmp_path / "new").exists()


def test_a_program_that_computes_something_else_is_not_written(digits_run, tmp_path, monkeypatch):
    loaded = sop.load(digits_run)
    right = export.program(loaded, (8, 8, 3)).serialize()
    monkeypatch.setattr(type(loaded), "logits", lambda self, images: np.ones((len(images), 10)))
    with pytest.raises(UsageError, match="differs from the run's"):
        export.check(right, loaded, (8, 8, 3))
