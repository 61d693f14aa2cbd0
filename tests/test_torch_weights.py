"""PyTorch weights come in, under every name they are published with, and go back out."""

import importlib.util
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import types
import zipfile

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from sop.errors import UsageError
from sop.models import create_model
from sop.torch_weights import convert, read, to_state_dict
from sop.torch_weights.__main__ import main
from sop.torch_weights.engine import conversion, init, trace
from sop.torch_weights.triangle import columns_by_rows, likely_order
from sop.training.variables import load_variables
from tests import triangle_orders
from tests.golden import network_cases
from tests.golden.network_cases import CASES, MORE_CASES, TOLERANCE, compare, converted, tensor
from tests.launch import ROOT, run_often

QUICK = (
    "gfgp_resnetp18_avg",
    "gsop1_resnet50_fusion_concat",
    "timm_convnext_tiny",
    "timm_vit_tiny_patch16",
)
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


@pytest.fixture(scope="module")
def network(request):
    """What `converted` gives of a golden network, for all tests of it."""
    return converted(request.param)


@pytest.mark.parametrize(
    "network",
    [
        *CASES,
        *QUICK,
        *(pytest.param(name, marks=pytest.mark.heavy) for name in MORE_CASES if name not in QUICK),
    ],
    indirect=True,
)
def test_logits_are_the_originals(network):
    error, count, published, unread = compare(*network)
    assert error < TOLERANCE
    assert count + unread == published


def test_every_golden_network_has_a_case():
    names = {path.stem for path in network_cases.FOLDER.glob("*.json")}
    assert names == {*CASES, *MORE_CASES}


@pytest.mark.parametrize(
    "network",
    [
        "cgd_preresnet20_cifar",
        "cgd_squeezenet1_1",
        "cgd_wrn16_4_cifar",
        "gfgp_densenet169_max_ent",
        "gfgp_resnetp18_avg",
        "gsop1_resnet50_fusion_concat",
        "gsop2_resnet50_channel",
        "timm_convnext_tiny",
        "timm_vit_tiny_patch16",
    ],
    indirect=True,
)
def test_round_trip(network):
    """Out again under the same names, shapes and values, but for names that are never read."""
    (_, state_dict, _, _), config, conversion = network
    found = to_state_dict(conversion.variables, config)
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
            self.value, self.shape, self.dtype = value, value.shape, f"torch.{value.dtype}"

        def detach(self):
            return self

        def numpy(self, force):
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
    with pytest.raises(UsageError, match="'epoch' is int, not a plain tensor"):
        convert({"epoch": 3, "model": state_dict}, config)
    with pytest.raises(UsageError, match="list given in the place of a state dict"):
        convert([state_dict], config)
    with pytest.raises(UsageError, match="has int as a name"):
        convert(state_dict | {7: np.zeros(3)}, config)
    endless = {}
    endless["state_dict"] = {"state_dict": endless}
    with pytest.raises(UsageError, match="holds itself under 'state_dict'"):
        convert(endless, config)
    with pytest.raises(UsageError, match=r"'a\\nb' is str, not a plain tensor"):
        convert(state_dict | {"a\nb": "text"}, config)
    with pytest.raises(UsageError) as refusal:
        convert({f"{i}{'x' * 10**5}": np.zeros(3) for i in range(1000)}, config)
    assert len(str(refusal.value)) < 2000


@pytest.mark.parametrize("other", ["module.conv1.weight", "features.0.weight"])
def test_two_spellings_of_one_tensor(resnet18, other):
    """They are refused where their values differ."""
    state_dict, config, variables = resnet18
    weight = state_dict["conv1.weight"]
    assert_equal(convert(state_dict | {other: weight.copy()}, config), variables)
    for different in (weight + 1, weight[:, :, :3, :3]):
        with pytest.raises(UsageError, match=rf"'conv1\.weight' and '{other}'|of another shape"):
            convert(state_dict | {other: different}, config)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("fc.bias", lambda x: x + 1j, r"'fc\.bias' is complex64, but must be one of bfloat16, fl"),
        ("fc.bias", lambda x: x.astype(int), r"'fc\.bias' is int64, but must be"),
        ("fc.bias", lambda x: x > 0, r"'fc\.bias' is bool, but must be"),
        ("fc.bias", lambda x: x.astype(object), r"'fc\.bias' is object, but must be"),
        ("fc.bias", lambda x: x.astype("float8_e4m3fn"), r"'fc\.bias' is float8_e4m3fn, but"),
        ("fc.bias", lambda x: x * np.nan, r"'fc\.bias' holds numbers that are not finite in fl"),
        ("fc.bias", lambda x: np.full(3, np.inf), r"'fc\.bias' holds numbers that are not fin"),
        ("fc.bias", lambda x: np.full(3, 1e300), r"'fc\.bias' holds numbers that are not finite"),
        ("bn1.running_var", lambda x: -x, r"'bn1\.running_var' holds a variance of -1\.\d"),
    ],
)
def test_values_that_no_network_has_are_refused(resnet18, name, change, sentence):
    state_dict, config, _ = resnet18
    with pytest.raises(UsageError, match=sentence):
        convert(state_dict | {name: change(state_dict[name])}, config)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", ">f4"])
def test_real_numbers_of_every_width_are_taken(resnet18, dtype):
    state_dict, config, _ = resnet18
    found = convert(state_dict | {"fc.bias": state_dict["fc.bias"].astype(dtype)}, config)
    bias = found["params"]["classifier"]["bias"]
    assert bias.dtype == np.float32
    np.testing.assert_array_equal(bias, state_dict["fc.bias"].astype(dtype).astype(np.float32))


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
    with pytest.raises(UsageError, match=r"hash_\d .* from \d+ to \d+, but .*projected_dim is 8;"):
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
    by_columns = np.array(["00", "01", "11", "02", "12", "22"])
    assert by_columns[columns_by_rows(6)].tolist() == ["00", "01", "02", "11", "12", "22"]


GSOP2 = {"backbone": "resnet8_cifar", "num_classes": 3, "attention": "gsop"}
GSOP2 |= {"representation": {"name": "mpncov", "reduction": 4}}


@pytest.mark.parametrize("backbone", ["resnet8_cifar", "vgg11"])
def test_triangle(backbone):
    """Either order is read, by classifiers of one layer or several, and written again."""
    config = {"backbone": backbone, "num_classes": 3, "representation": {**MPNCOV, "reduction": 4}}
    if backbone == "vgg11":
        config["hidden"] = (8,)
    state_dict = random_state_dict(config)
    name = "fc.weight" if backbone == "resnet8_cifar" else "classifier.0.weight"
    assert state_dict[name].shape[1] == 10
    state_dict[name] = np.broadcast_to(np.arange(10, dtype=np.float32), state_dict[name].shape)
    kernels = {}
    for order in (None, "rows", "columns"):
        variables = convert(state_dict, config, triangle=order)
        again = to_state_dict(variables, config, triangle=order)
        np.testing.assert_array_equal(again[name], state_dict[name])
        head = variables["params"]["classifier"]
        kernels[order] = head.get("fc1", head)["kernel"][:, 0].tolist()
    assert kernels[None] == kernels["rows"] == list(range(10))
    assert kernels["columns"] == [0, 1, 3, 6, 2, 4, 7, 5, 8, 9]


def test_triangle_of_gsop_net2_is_read_by_columns():
    state_dict = random_state_dict(GSOP2)
    found = [conversion(state_dict, GSOP2, triangle=each) for each in (None, "columns", "rows")]
    assert [each.triangle for each in found] == ["columns", "columns", "rows"]
    assert_equal(found[0].variables, found[1].variables)
    first, _, last = (each.variables["params"]["classifier"]["kernel"] for each in found)
    np.testing.assert_array_equal(first, last[columns_by_rows(10)])


def test_triangle_is_refused_where_there_is_none(resnet18):
    state_dict, config, _ = resnet18
    with pytest.raises(UsageError, match="triangle is 'rows', but resnet18 reads no triangle"):
        convert(state_dict, config, triangle="rows")
    with pytest.raises(UsageError, match="triangle is 'diagonals' but must be 'rows' or 'columns'"):
        convert(state_dict, config, triangle="diagonals")


@pytest.mark.parametrize("d", [16, 64])
def test_trained_weights_tell_their_order_and_new_ones_none(d):
    told, _ = triangle_orders.outcomes(d, steps=100, seeds=2)
    assert told == ["right"] * 4
    told, _ = triangle_orders.outcomes(d, steps=0, seeds=10)
    assert told == [None] * 20
    assert likely_order(np.zeros((136, 3), np.float32)) is None


def test_a_wrong_order_is_warned_of(tmp_path, capsys, monkeypatch):
    """By the weights themselves; a published file's name tells its order."""
    representation = {"name": "mpncov", "reduction": 16}
    config = {"backbone": "resnet8_cifar", "num_classes": 10, "representation": representation}
    state_dict = random_state_dict(config)
    kernel = triangle_orders.train(16, steps=100, seed=0)
    state_dict["fc.weight"] = kernel[np.argsort(columns_by_rows(136))].T
    weights = {name: np.ascontiguousarray(value) for name, value in state_dict.items()}
    flags = ["--config=configs/digits.py", "--config.model.backbone=resnet8_cifar"]
    flags += ["--config.model.representation.name=mpncov"]
    flags += ["--config.model.representation.reduction=16", f"--workdir={tmp_path / 'run'}"]
    monkeypatch.chdir(ROOT)

    def run(name, *more):
        save_file(weights, tmp_path / name)
        main([str(tmp_path / name), *flags, *more])
        out, err = capsys.readouterr()
        (order,) = re.findall(r"is read by (\w+)\n", out)
        found = load_variables(tmp_path / "run")["params"]["classifier"]["kernel"]
        assert (order == "columns") == np.array_equal(found, kernel)
        shutil.rmtree(tmp_path / "run")
        return order, err

    order, doubt = run("mpncovresnet50.safetensors")
    assert order == "rows"
    assert len(doubt.splitlines()) == 1
    assert "'fc.weight' was taken for weights of a triangle read by rows, but looks" in doubt
    assert doubt.endswith("with --triangle=columns.\n")
    assert run("mpncovresnet50.safetensors", "--triangle=columns") == ("columns", "")
    assert run("mpncovresnet50-15991845.safetensors") == ("columns", "")
    assert run("mpncovresnet101-ade9737a.safetensors") == ("columns", "")
    order, doubt = run("mpncovresnet50-15991845.safetensors", "--triangle=rows")
    assert order == "rows" and "--triangle=columns" in doubt


def test_read_refuses(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no file"):
        read(tmp_path / "nothing.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"12345678901234567890")
    with pytest.raises(UsageError, match="no safetensors file"):
        read(tmp_path / "broken.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UsageError, match="needs safetensors; install it with `pip install safet"):
        read(tmp_path / "broken.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "some.pth").write_bytes(b"")
    with pytest.raises(UsageError, match=r"needs PyTorch; install it with `pip install -e '\.\[w"):
        read(tmp_path / "some.pth")


def test_read_refuses_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for name in (".", "pipe.pth"):
        with pytest.raises(UsageError, match=r"is no file; give one with a state dict\.$"):
            read(tmp_path / name)
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(UsageError, match="cannot be read: "):
            read(tmp_path / name)


def zipped(path, compression=zipfile.ZIP_STORED):
    """A file as PyTorch writes them, but for what stands in it, and the place of a tensor in it."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", b"what PyTorch would read")
        file.writestr("archive/data/0", b"0123456789" * 1000)
    return path.read_bytes().find(b"0123456789")


@pytest.fixture
def any_torch(monkeypatch):
    """PyTorch, or in its absence what takes every file for a state dict."""
    if importlib.util.find_spec("torch") is None:
        made = types.SimpleNamespace(load=lambda *arguments, **options: {})
        monkeypatch.setitem(sys.modules, "torch", made)


def test_zips_that_pytorch_does_not_write_are_refused(tmp_path, any_torch):
    """They are not unpacked: a bomb would fill memory before a tensor of it is looked at."""
    path = tmp_path / "weights.pth"
    place = zipped(path)
    data = path.read_bytes()
    path.write_bytes(data[: place + 5000] + b"x" + data[place + 5001 :])
    with pytest.raises(UsageError, match="it is damaged in 'archive/data/0'; give"):
        read(path)
    sizes = data.rfind(b"archive/data/0") - 46 + 20  # of the last part, in the directory
    more = (10**9).to_bytes(4, "little")
    path.write_bytes(data[:sizes] + more + more + data[sizes + 8 :])
    with pytest.raises(UsageError, match="it has parts that are larger than the file; give"):
        read(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match="it is damaged or no state dict; give"):
        read(path)
    zipped(path, zipfile.ZIP_DEFLATED)
    with pytest.raises(UsageError, match="it has compressed parts, which PyTorch does not write"):
        read(path)


def test_files_larger_than_any_checkpoint_are_not_opened(tmp_path, any_torch):
    """A file with holes takes no room on the disk, but would in memory."""
    path = tmp_path / "weights.pth"
    path.write_bytes(b"what stands in an old file")
    os.truncate(path, 2**33)
    with pytest.raises(UsageError, match=r"has 8\.0 GiB, more than any checkpoint"):
        read(path)


def test_safetensors_are_read_when_they_are_used(tmp_path, resnet18):
    """A tensor of 64 GiB that is not used is none in memory; one in bfloat16 is read."""
    state_dict, config, _ = resnet18
    path = tmp_path / "weights.safetensors"
    bias = np.float32([1, 2, 3])
    kinds = {"huge": ("F32", [2**34], 2**36), "fc.bias": ("BF16", [3], 6)}
    header, place = {}, 0
    for name, (dtype, shape, size) in kinds.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + place)
        file.seek(8 + len(text) + 2**36)
        file.write(bias.astype("bfloat16").tobytes())
    found = {**state_dict, **read(path)}
    with pytest.raises(UsageError, match=r"1 left over: huge \(17179869184,\)"):
        convert(found, config)
    kept = convert(found, config, allow_missing=["huge"])["params"]["classifier"]["bias"]
    np.testing.assert_array_equal(kept, bias)


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


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory):
    """(state dict, config.model, the command's arguments for files of both)."""
    folder = tmp_path_factory.mktemp("weights")
    config = {"backbone": "resnet8_cifar", "num_classes": 3}
    state_dict = random_state_dict(config)
    weights = {name: np.ascontiguousarray(value) for name, value in state_dict.items()}
    save_file(weights, folder / "weights.safetensors")
    (folder / "config.py").write_text(
        "from sop import config\n"
        "def get_config():\n"
        "    made = config.get_config()\n"
        f"    made.model.update({config})\n"
        "    return made\n"
    )
    return (
        state_dict,
        config,
        [str(folder / "weights.safetensors"), f"--config={folder / 'config.py'}"],
    )


# Commands that come to their end, but for one.
COMMANDS = {
    "plain": [],
    "other classes": ["--config.model.num_classes=4"],
    "new head": ["--config.model.num_classes=4", "--allow-missing=^fc"],
    "own options": [
        "--config.model.stage_size=2",
        "--config.model.representation.name=mpncov",
        "--config.model.representation.reduction=8",
        r"--allow-missing=^fc|layer_reduce|layer\d\.1",
    ],
}


@pytest.fixture(scope="module")
def ran(small_weights, tmp_path_factory):
    """Of each of COMMANDS and REFUSALS: what it ended with, and its work folder."""
    folder = tmp_path_factory.mktemp("commands")
    given = {**COMMANDS, **{number: each for number, (each, _) in enumerate(REFUSALS)}}
    folders = [folder / f"run{number}" for number in range(len(given))]
    commands = [
        [*small_weights[2], f"--workdir={workdir}", *arguments]
        for workdir, arguments in zip(folders, given.values(), strict=True)
    ]
    ends = run_often(commands, folder, ["sop.torch_weights.__main__"])
    return dict(zip(given, zip(ends, folders, strict=True), strict=True))


def test_command(small_weights, ran):
    """A safetensors file and a config become a checkpoint with the same variables."""
    state_dict, config, _ = small_weights
    (code, output), new = ran["plain"]
    assert code == 0, output
    assert "resnet8_cifar with 77,587 parameters" in output
    assert_equal(load_variables(new), convert(state_dict, config))
    (code, output), new = ran["other classes"]
    assert code == 2
    assert output.strip().endswith("--allow-missing=REGEX.")
    assert "Traceback" not in output and not new.exists()
    (_, output), new = ran["new head"]
    assert "not in the file, so new: fc." in output
    assert load_variables(new)["params"]["classifier"]["bias"].shape == (4,)


def test_command_takes_options_that_the_config_file_does_not_name(ran):
    """Those of the backbone, and of what is put into it."""
    (code, output), new = ran["own options"]
    assert code == 0, output
    params = load_variables(new)["params"]
    assert params["representation"]["reduce"]["kernel"].shape == (1, 1, 64, 8)
    assert "layer1_1" in params["features"]


def test_command_without_arguments():
    command = [sys.executable, "-m", "sop.torch_weights"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "required: file, --config, --workdir" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


REFUSALS = [
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
]


@pytest.mark.parametrize("number", range(len(REFUSALS)), ids=[" ".join(a) for a, _ in REFUSALS])
def test_command_refuses_in_one_sentence(number, ran):
    (code, output), workdir = ran[number]
    assert code == 2, output
    assert REFUSALS[number][1] in output
    assert "Traceback" not in output
    assert len(output.strip().splitlines()) == 1, output
    assert not workdir.exists()
