"""A run as a program and as weights that others read."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import main as program
import sop
from sop import export
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
    with pytest.raises(UsageError, match="differ from the run's"):
        export.check(right, loaded, (8, 8, 3))
