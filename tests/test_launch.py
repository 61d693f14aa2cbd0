"""What `launch` does before the first step."""

import flax.linen as nn

import launch
from sop.config.command_line import load
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

    monkeypatch.setattr(launch, "create_model", lambda *_, **__: Tiny())
    config = load(f"{ROOT}/configs/digits.py")
    config.num_epochs, config.batch_size = 1, 720
    launch.train(config, str(tmp_path / "run"))
    assert len(traced) == 2
