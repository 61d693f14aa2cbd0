"""PyTorch weights come in, under every name they are published with, and go back out."""

import importlib.util
import os
import pickle
import subprocess
import sys
import types

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from sop.errors import UsageError
from sop.models import create_model
from sop.torch_weights import convert, read, to_state_dict
from sop.torch_weights.engine import init, trace
from sop.torch_weights.layouts import columns_by_rows
from sop.training.checkpoints import load_variables
from tests.golden import network_cases
from tests.golden.network_cases import CASES, MORE_CASES, TOLERANCE, compare, original, tensor

QUICK = ("gfgp_resnetp18_avg", "gsop1_resnet50_fusion_concat")
MPNCOV = {"name": "mpncov", "reduction": 8}


@pytest.fixture(scope="module")
def resnet18():
    """(state dict with torchvision's names, config, variables)."""
    config = {"backbone": "resnet18", "num_classes": 3}
    state_dict = random_state_dict(config)
    return state_dict, config, convert(state_dict, config)


def random_state_dict(config):
    flat = {path: np.zeros(leaf.shape) for path, leaf in trace(create_model(config)).items()}
    zeros = to_state_dict(traverse_util.unflatten_dict(flat, sep="/"), config)
    return {name: tensor("test", name, value.shape) for name, value in zeros.items()}


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "name",
    [
        *CASES,
        *QUICK,
        *(pytest.param(name, marks=pytest.mark.heavy) for name in MORE_CASES if name not in QUICK),
    ],
)
def test_logits_are_the_originals(name):
    error, count, published, unread = compare(name)
    assert error < TOLERANCE
    assert count + unread == published


def test_every_golden_network_has_a_case():
    names = {path.stem for path in network_cases.FOLDER.glob("*.json")}
    assert names == {*CASES, *MORE_CASES}


@pytest.mark.parametrize(
    "name",
    [
        "cgd_preresnet20_cifar",
        "cgd_squeezenet1_1",
        "cgd_wrn16_4_cifar",
        "gfgp_densenet169_max_ent",
        "gfgp_resnetp18_avg",
        "gsop1_resnet50_fusion_concat",
        "gsop2_resnet50_channel",
    ],
)
def test_round_trip(name):
    """Out again under the same names, shapes and values, but for names that are never read."""
    _, state_dict, _, logits = original(name)
    config = {"num_classes": logits.shape[1], **(CASES | MORE_CASES)[name]}
    found = to_state_dict(convert(state_dict, config), config)
    read_names = [key for key in state_dict if not key.endswith(".scale")]
    assert set(found) == set(read_names)
    for key in read_names:
        np.testing.assert_array_equal(found[key], state_dict[key])


def test_spellings(resnet18):
    """DataParallel's, a checkpoint's and fast-MPN-COV's re-assembled names are the same network."""
    state_dict, config, variables = resnet18
    children = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    reassembled = {}
    for name, value in state_dict.items():
        head, _, rest = name.partition(".")
        start = "classifier" if head == "fc" else f"features.{children[head]}"
        reassembled[f"{start}.{rest}"] = value
    counted = dict(state_dict) | {"bn1.num_batches_tracked": np.asarray(7)}
    parallel = {f"module.{name}": value for name, value in state_dict.items()}
    inner = {name.replace("features.", "features.module."): x for name, x in reassembled.items()}
    checkpoint = {"epoch": 65, "state_dict": parallel, "optimizer": {"state": {}}}
    for spelling in (reassembled, counted, parallel, inner, checkpoint):
        assert_equal(convert(spelling, config), variables)


def test_reductions_two_spellings():
    config = {
        "backbone": "resnet18",
        "num_classes": 3,
        "representation": MPNCOV,
    }
    state_dict = random_state_dict(config)
    assert state_dict["layer_reduce.weight"].shape == (8, 512, 1, 1)
    renamed = {
        name.replace("layer_reduce_bn.", "representation.conv_dr_block.1.").replace(
            "layer_reduce.", "representation.conv_dr_block.0."
        ): value
        for name, value in state_dict.items()
    }
    assert set(renamed) != set(state_dict)
    assert_equal(convert(renamed, config), convert(state_dict, config))


def test_tensors_of_pytorch_are_taken(resnet18):
    class Tensor:
        """The part of torch.Tensor that is used."""

        def __init__(self, value):
            self.value, self.shape = value, value.shape

        def detach(self):
            return self

        cpu = float = detach

        def numpy(self):
            return self.value

    state_dict, config, variables = resnet18
    assert_equal(convert({k: Tensor(x) for k, x in state_dict.items()}, config), variables)


def test_all_that_does_not_fit_is_listed(resnet18):
    state_dict, config, _ = resnet18
    state_dict = dict(state_dict)
    del state_dict["layer1.0.conv1.weight"]
    state_dict["layer1.0.conv9.weight"] = np.zeros((2, 2))
    state_dict["bn1.bias"] = np.zeros(65)
    with pytest.raises(UsageError) as refusal:
        convert(state_dict, config)
    message = str(refusal.value)
    assert "1 missing: layer1.0.conv1.weight (64, 64, 3, 3)" in message
    assert "1 left over: layer1.0.conv9.weight (2, 2)" in message
    assert "1 of another shape: bn1.bias (65,) instead of (64,)" in message
    assert "--allow-missing" in message


def test_no_state_dict_is_refused(resnet18):
    state_dict, config, _ = resnet18
    with pytest.raises(UsageError, match="'epoch' is int, not a tensor"):
        convert({"epoch": 3, "model": state_dict}, config)
    with pytest.raises(UsageError, match=r"names one tensor twice, as 'conv1\.weight'"):
        convert(state_dict | {"features.0.weight": state_dict["conv1.weight"]}, config)


@pytest.mark.parametrize("pattern", [r"^fc\.", "classifier"])
def test_a_new_head(resnet18, pattern):
    """It starts as in a new network; everything else comes from the file."""
    state_dict, config, variables = resnet18
    config = config | {"num_classes": 5}
    with pytest.raises(UsageError, match=r"2 of another shape: fc\.bias \(3,\) instead of \(5,\)"):
        convert(state_dict, config)
    found = convert(state_dict, config, allow_missing=[pattern])
    assert_equal(found["params"]["features"], variables["params"]["features"])
    assert_equal(found["batch_stats"], variables["batch_stats"])
    kernel = found["params"]["classifier"]["kernel"]
    assert kernel.shape == (512, 5)
    assert 0 < abs(kernel).max() <= 512**-0.5


def test_a_pattern_that_is_none_is_refused(resnet18):
    state_dict, config, _ = resnet18
    with pytest.raises(
        UsageError, match=r"allow_missing is '\(' but must be a string that is a regular expression"
    ):
        convert(state_dict, config, allow_missing=[r"^fc\.", "("])


def test_a_new_representation(resnet18):
    state_dict, config, variables = resnet18
    config = config | {"representation": MPNCOV}
    found = convert(state_dict, config, allow_missing=["fc", "layer_reduce"])
    assert_equal(found["params"]["features"], variables["params"]["features"])
    assert found["params"]["representation"]["reduce"]["kernel"].shape == (1, 1, 512, 8)
    assert (found["batch_stats"]["representation"]["reduce_norm"]["var"] == 1).all()


def test_compact_bilinear_pooling_keeps_the_originals_hashes(resnet18):
    """The first numbers of torch.manual_seed(1); torch.randint(0, 8192, (512,)), twice, and signs.

    PyTorch 2.13 printed them.
    """
    state_dict, config, _ = resnet18
    config = config | {"representation": "compact_bilinear"}
    constants = convert(state_dict, config, allow_missing=["fc"])["constants"]["representation"]
    assert constants["hash_1"][:4].tolist() == [5157, 235, 3980, 5192]
    assert constants["hash_2"][:4].tolist() == [2843, 6472, 6684, 5762]
    assert constants["sign_1"][:6].tolist() == [1, -1, -1, 1, 1, 1]
    assert constants["sign_2"][:6].tolist() == [1, -1, 1, -1, 1, -1]


def test_round_trip_keeps_the_hashes_of_compact_bilinear_pooling():
    """Those of a network trained here are not the published ones, which a file without gets."""
    representation = {"name": "compact_bilinear", "projected_dim": 64, "seed": 7}
    config = {"backbone": "resnet8_cifar", "num_classes": 3, "representation": representation}
    variables = jax.jit(lambda: init(create_model(config)))()
    variables = jax.tree.map(np.asarray, variables)
    state_dict = to_state_dict(variables, config)
    found = convert(state_dict, config)
    assert_equal(found, variables)
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, variables)
    published = convert({k: x for k, x in state_dict.items() if "representation" not in k}, config)
    hashes = [each["constants"]["representation"]["hash_1"] for each in (variables, published)]
    assert (hashes[0] != hashes[1]).any()
    smaller = config | {"representation": representation | {"projected_dim": 8}}
    with pytest.raises(UsageError, match=r"hash_\d .* goes up to \d+, but .*projected_dim is 8;"):
        convert(state_dict, smaller, allow_missing=["^fc"])


def test_a_module_of_ones_own_has_its_own_names(monkeypatch):
    class Gate(nn.Module):
        torch_names = ((r"\battention/gate\b", "fc_gate"),)

        @nn.compact
        def __call__(self, x, train):
            return x * self.param("gate", nn.initializers.ones, (x.shape[-1],))

    module = types.ModuleType("of_my_own")
    module.Gate = Gate
    monkeypatch.setitem(sys.modules, "of_my_own", module)
    config = {"backbone": "resnet8_cifar", "num_classes": 3, "attention": "of_my_own:Gate"}
    state_dict = random_state_dict(config)
    assert state_dict["layer1.0.fc_gate"].shape == (16,)
    assert_equal(to_state_dict(convert(state_dict, config), config), state_dict)


def test_columns_by_rows():
    """The classifier of GSoP-Net2 meets the entries of the upper triangle in this order."""
    by_columns = np.array(["00", "01", "11", "02", "12", "22"])
    assert by_columns[columns_by_rows(6)].tolist() == ["00", "01", "02", "11", "12", "22"]


def test_read_refuses(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no file"):
        read(tmp_path / "nothing.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"12345678901234567890")
    with pytest.raises(UsageError, match="no safetensors file"):
        read(tmp_path / "broken.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(UsageError, match="needs safetensors; install it with `pip install safet"):
        read(tmp_path / "broken.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "some.pth").write_bytes(b"")
    with pytest.raises(UsageError, match=r"needs PyTorch; install it with `pip install -e '\.\[w"):
        read(tmp_path / "some.pth")


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_runs_no_code(tmp_path):
    """With PyTorch, in whose absence the file is not opened, it is refused before anything runs."""
    path = tmp_path / "attack.pth.tar"
    weights = {"state_dict": {"conv1.weight": Attack(tmp_path / "ran")}}
    path.write_bytes(pickle.dumps(weights, protocol=2))
    has_torch = importlib.util.find_spec("torch") is not None
    with pytest.raises(UsageError, match="could run code" if has_torch else "needs PyTorch"):
        read(path)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def command(tmp_path):
    """(state dict, config.model, function that runs the command on both with more arguments)."""
    config = {"backbone": "resnet8_cifar", "num_classes": 3}
    state_dict = random_state_dict(config)
    weights = {name: np.ascontiguousarray(value) for name, value in state_dict.items()}
    save_file(weights, tmp_path / "weights.safetensors")
    (tmp_path / "config.py").write_text(
        "from sop import config\n"
        "def get_config():\n"
        "    made = config.get_config()\n"
        f"    made.model.update({config})\n"
        "    return made\n"
    )
    start = [sys.executable, "-m", "sop.torch_weights", str(tmp_path / "weights.safetensors")]
    start.append(f"--config={tmp_path / 'config.py'}")

    def run(*arguments):
        return subprocess.run([*start, *arguments], capture_output=True, text=True)

    return state_dict, config, run


def test_command(tmp_path, command):
    """A safetensors file and a config become a checkpoint with the same variables."""
    state_dict, config, run = command
    done = run(f"--workdir={tmp_path / 'new'}")
    assert done.returncode == 0, done.stderr
    assert "resnet8_cifar with 77,587 parameters" in done.stdout
    assert_equal(load_variables(tmp_path / "new"), convert(state_dict, config))
    new_head = ("--config.model.num_classes=4", "--allow-missing=^fc")
    refused = run(f"--workdir={tmp_path / 'other'}", new_head[0])
    assert refused.returncode == 2
    assert refused.stderr.strip().endswith("--allow-missing=REGEX.")
    assert "Traceback" not in refused.stderr
    done = run(f"--workdir={tmp_path / 'other'}", *new_head)
    assert "not in the file, so new: fc." in done.stdout
    assert load_variables(tmp_path / "other")["params"]["classifier"]["bias"].shape == (4,)


def test_command_takes_options_that_the_config_file_does_not_name(tmp_path, command):
    """Those of the backbone, and of what is put into it."""
    _, _, run = command
    done = run(
        f"--workdir={tmp_path / 'new'}",
        "--config.model.stage_size=2",
        "--config.model.representation.name=mpncov",
        "--config.model.representation.reduction=8",
        r"--allow-missing=^fc|layer_reduce|layer\d\.1",
    )
    assert done.returncode == 0, done.stderr
    params = load_variables(tmp_path / "new")["params"]
    assert params["representation"]["reduce"]["kernel"].shape == (1, 1, 64, 8)
    assert "layer1_1" in params["features"]


def test_command_without_arguments():
    command = [sys.executable, "-m", "sop.torch_weights"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "required: file, --config, --workdir" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config.model.bakbone=vgg16"], "no config key 'model.bakbone'. Did you mean 'model.ba"),
        (["--config.modle.num_classes=3"], "no config key 'modle.num_classes'"),
        (["--config.model.num_clases=3"], "Did you mean 'model.num_classes'"),
        (["--config.model.num_classes=many"], "is 'many' but must be a whole number"),
        (["--config.model.heads=3"], "no option 'heads' of backbone 'resnet8_cifar'"),
        (["--config.model.attention.name=gsopp"], "no attention 'gsopp'"),
        (["--config.model.representation.num_iters=3"], "has options ('num_iters') but no name"),
        (["--config=nowhere/config.py"], "no config file nowhere/config.py"),
        (["--allow-missing=("], "that is a regular expression"),
        (["another.pth"], "another.pth"),
        (["--colour=red"], "no flag '--colour=red'"),
    ],
)
def test_command_refuses_in_one_sentence(tmp_path, command, arguments, sentence):
    _, _, run = command
    refused = run(f"--workdir={tmp_path / 'new'}", *arguments)
    assert refused.returncode == 2
    assert sentence in refused.stderr
    assert "Traceback" not in refused.stderr + refused.stdout
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()
