"""Commands from any folder: a user's own modules are found, refusals are one sentence."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from sop.models import create_model
from sop.torch_weights import to_state_dict
from sop.torch_weights.engine import init
from tests.launch import ROOT, run

GATE = """
import flax.linen as nn

class Gate(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return x * self.param("gate", nn.initializers.ones, (x.shape[-1],))
"""
MODEL = {"backbone": "resnet8_cifar", "num_classes": 10}


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with a module of the user's own and a file of weights."""
    (tmp_path / "my_gate.py").write_text(GATE)
    state_dict = to_state_dict(init(create_model(MODEL)), MODEL)
    weights = {name: np.ascontiguousarray(value) for name, value in state_dict.items()}
    save_file(weights, tmp_path / "weights.safetensors")
    return tmp_path


def test_weights_and_a_module_of_ones_own_are_found_from_another_folder(elsewhere):
    code, output = run(
        "-m",
        "sop.torch_weights",
        "weights.safetensors",
        f"--config={ROOT}/configs/digits.py",
        "--config.model.representation.name=gavp",
        "--config.model.attention.name=my_gate:Gate",
        "--allow-missing=gate",
        "--workdir=converted",
        cwd=elsewhere,
    )
    assert code == 0, output
    assert "not in the file, so new: layer1.0.attention.gate" in output
    assert (elsewhere / "converted").exists()


def test_a_module_of_ones_own_is_found_by_training_from_another_folder(elsewhere):
    code, output = run(
        str(ROOT / "main.py"),
        "--workdir=run",
        "--config.model.attention.name=my_gate:Gaet",
        cwd=elsewhere,
    )
    assert (code, len(output.strip().splitlines())) == (2, 1), output
    assert "'my_gate:Gaet' cannot be imported: module 'my_gate' has no" in output
    assert not (elsewhere / "run").exists()


def test_only_refusals_are_sentences():
    program = (
        "import sys; from sop.command import run; from sop.errors import UsageError\n"
        "def main(arguments): raise {}('what')\n"
        "run(main)"
    )
    assert run("-c", program.format("UsageError")) == (2, "what\n")
    code, output = run("-c", program.format("ValueError"))
    assert code == 1 and "Traceback" in output
