"""What `launch` does before the first step."""

import flax.linen as nn
import pytest

import launch
from sop.config.command_line import load
from sop.errors import UsageError
from tests.launch import ROOT


def test_initialisation_is_traced_twice(tmp_path, monkeypatch):
    """Once for the shapes, once for the values."""
    traced = []

    class Tiny(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            if self.is_initializing():
                traced.append(images.shape)
            return nn.Dense(10, name="classifier")(images.mean((1, 2)))

    monkeypatch.setattr(launch, "make_model", lambda config: Tiny())
    config = load(f"{ROOT}/configs/digits.py")
    config.num_epochs, config.batch_size = 1, 720
    launch.train(config, str(tmp_path / "run"))
    assert len(traced) == 2


def test_a_removed_work_folder_is_named_whatever_a_library_says(tmp_path):
    def fail():
        with launch._removal_refused(str(tmp_path / "run")):
            raise ValueError("NOT_FOUND: manifest")

    with pytest.raises(UsageError, match=r"Work folder .*run was removed while"):
        fail()
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="NOT_FOUND"):
        fail()
