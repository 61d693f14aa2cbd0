"""Every golden case of the layers: what computes it here, and how far it is from the original.

`python -m tests.golden.layer_cases` prints the table for the copies in tests/golden/layers;
`--golden=DIR` takes another folder, `--copy` first fills tests/golden/layers from it. Copies keep
only every k-th entry of large outputs and gradients, to keep the repository light.
On a GPU set JAX_DEFAULT_MATMUL_PRECISION=highest: the 1×1 convolutions have JAX's default
precision, TF32 there; covariances and square roots ask for float32 themselves.
"""

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from sop import layers, ops
from sop.models.backbone import TorchNames
from sop.torch_weights import convert_layer
from sop.torch_weights.layouts import to_torch
from sop.torch_weights.names import rules_of, torch_name

FOLDER = Path(__file__).parent / "layers"
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
KEPT = 4096  # entries, at most, of an output or a gradient in the copies


@dataclasses.dataclass(frozen=True)
class Case:
    """A module, or a function without parameters.

    Attributes:
      module: Flax module, or what makes one of a `LocalPool`'s fields.
      place: of the module in a network, which decides how PyTorch names its parameters.
      train: mode of the module.
      function: (x, lam, geometry of the window) → y, in the place of a module.
    """

    module: nn.Module | Callable[..., nn.Module] | None = None
    place: str = "representation"
    train: bool = False
    function: Callable | None = None


def cases() -> dict[str, Case]:
    """Name of the golden file → case."""
    attention, pool = partial(Case, place="attention"), partial(Case, place="pool")
    gsop = partial(layers.GSoP, 16, planes=64)
    found = {
        "covariance": Case(function=lambda x, *_: ops.covariance(x)),
        "matrix_sqrt_n5": Case(function=lambda a, *_: ops.matrix_sqrt(a, 5)),
        "bilinear": Case(layers.BilinearCNN()),
        "gem": Case(layers.GeneralizedMean()),
        "max": Case(layers.GlobalMax()),
        "eigh_pade": Case(layers.MPNCOV(normalization="eigh_pade")),
        "deepbdc": Case(layers.DeepBDC()),
        "isice": Case(layers.ISICE(sparsity=0.3)),
        "mgcrp_n1": Case(layers.MGCrP(True, heads=3, dim=5)),
        "mgcrp_n3": Case(layers.MGCrP(True, heads=3, dim=5, num_iters=3)),
        "moment_probing": Case(layers.MomentProbing(True, width=64)),
        "compact_bilinear": Case(layers.CompactBilinear(projected_dim=64)),
        "mpncov_plain": Case(layers.MPNCOV(normalization="none", vectorize=False)),
        "cgd": attention(layers.CGD()),
        "cgd_spatial": attention(layers.SpatialCGD()),
        "cgd_toy": attention(layers.ToyCGD()),
        "se": attention(layers.SqueezeExcitation()),
        "eca": attention(layers.ECA()),
        "gc": attention(layers.GlobalContext(4)),
        "simam": attention(layers.SimAM()),
        "gct": attention(layers.GCT()),
        "fcanet": attention(layers.FcaNet(side=14)),
        "gsop_fusion_average_eval": attention(gsop("fusion_avg")),
        "gsop_fusion_max_eval": attention(gsop("fusion_max")),
        "gsop_fusion_concat_eval": attention(gsop("fusion_concat")),
    }
    for size in ("c12_5x6", "c24_3x4"):
        found[f"pade_lyapunov_{size}"] = Case(layers.MPNCOV(normalization="pade_lyapunov"))
        for n in (1, 2, 3, 5):
            found[f"isqrt_cov_n{n}_{size}"] = Case(layers.MPNCOV(num_iters=n))
    for train in (False, True):
        mode = "train" if train else "eval"
        found[f"mpncov_reduce_{mode}"] = Case(layers.MPNCOV(reduction=8), train=train)
        found[f"dropcov_{mode}"] = Case(layers.DropCov(reduction=8), train=train)
        iter_norm = layers.IterNorm(group_size=8)
        found[f"iter_norm_{mode}"] = Case(iter_norm, place="norm", train=train)
        found[f"gsop_channel_{mode}"] = attention(gsop(), train=train)
        found[f"gsop_position_{mode}"] = attention(gsop("position"), train=train)
        found[f"gsop_compact_{mode}"] = attention(layers.CompactGSoP(8), train=train)
        found[f"cbam_{mode}"] = attention(layers.CBAM(), train=train)
        found[f"srm_{mode}"] = attention(layers.SRM(), train=train)
        found[f"coordinate_{mode}"] = attention(layers.CoordinateAttention(), train=train)
        for activation in ("sigmoid", "softplus"):
            module = partial(layers.GFGP, activation=activation)
            found[f"gfgp_{activation}_{mode}"] = pool(module, train=train)
    for window in ("2x2s2", "3x2s2ceil", "3x3s2p1", "3x3s2p1ceil", "4x4s4"):
        for shape in ("constant", "channel", "sample", "sample_channel", "position"):
            found[f"maxent_{window}_{shape}"] = Case(function=_max_entropy)
    return dict(sorted(found.items()))


def _max_entropy(x, lam, geometry):
    return ops.max_entropy_pool(x, lam, **geometry)


def geometry_of(golden) -> dict:
    pairs = {"window": "kernel", "strides": "stride", "padding": "padding"}
    geometry = {ours: tuple(golden[theirs].tolist()) for ours, theirs in pairs.items()}
    return {**geometry, "ceil_mode": bool(golden["ceil_mode"])}


def variables_of(module, place, golden) -> dict:
    """The parameters and statistics of the golden file, by the mapping that converts weights."""
    tensors = {
        key.removeprefix("param/"): golden[key] for key in golden if key.startswith("param/")
    }
    if tensors:
        return convert_layer(module, place, golden["x"], tensors)
    drawn = {key: golden[key] for key in golden if key.startswith(("hash_", "sign_"))}
    return {"constants": drawn, "params": {}}


def computed(case: Case, golden) -> dict[str, np.ndarray]:
    """The arrays `y` and `grad/…` of a golden file, computed here, in PyTorch's layout."""
    inputs = {key: golden[key] for key in ("x", "lam") if key in golden}
    geometry = geometry_of(golden) if "kernel" in golden else {}
    module = case.module
    if module is not None:
        module = module if isinstance(module, nn.Module) else module(**geometry)
        variables = variables_of(module, case.place, golden)
        inputs["params"] = variables.pop("params")

    def apply(inputs):
        if module is None:
            return case.function(inputs["x"], inputs.get("lam"), geometry)
        given = {**variables, "params": inputs["params"]}
        rngs = {"dropout": jax.random.key(0)}
        return module.apply(given, inputs["x"], case.train, mutable=["batch_stats"], rngs=rngs)[0]

    @jax.jit
    def outputs(inputs, cotangent):
        y, pullback = jax.vjp(apply, inputs)
        return y, pullback(cotangent)[0]

    y, gradients = outputs(inputs, golden["cotangent"])
    params = traverse_util.flatten_dict(gradients.pop("params", {}), sep="/")
    found = {"y": y, **{f"grad/{key}": value for key, value in gradients.items()}}
    for path, value in params.items():
        rules = TorchNames(names=rules_of(module))
        name = torch_name(f"params/{case.place}/{path}", rules).removeprefix(f"{case.place}.")
        if f"grad/param/{name}" in golden:
            found[f"grad/param/{name}"] = to_torch(f"params/{path}", value)
    return {key: np.asarray(value) for key, value in found.items()}


def compact_bilinear_float64(golden) -> dict[str, np.ndarray]:
    """The compact-bilinear case from its equation, in float64.

    No pair of channels reaches some of its 64 bins: they are zero. The original sums FFTs per
    position, leaves ±1e-7 there, and its root √(|y| + 1e-8) makes 1e-4 of it; its gradient
    multiplies rounding by as much. So the original is no nearer to this than 2e-4.
    """
    batch, height, width, channels = golden["x"].shape
    x = golden["x"].astype(np.float64).reshape(batch, height * width, channels)
    bins = (golden["hash_1"][:, None] + golden["hash_2"]) % golden["projected_dim"]
    one_hot = np.eye(int(golden["projected_dim"]))[bins]
    sketch = one_hot * (golden["sign_1"][:, None] * golden["sign_2"])[..., None]
    raw = np.einsum("bnc,bnd,cdk->bk", x, x, sketch, optimize=True)
    root = np.sqrt(np.abs(raw) + 1e-8)
    norm = np.linalg.norm(np.sign(raw) * root, axis=1, keepdims=True)
    y = np.sign(raw) * root / norm
    v = golden["cotangent"]
    g = (v - y * np.sum(v * y, 1, keepdims=True)) / norm * np.sign(raw) ** 2 / (2 * root)
    pairs = np.einsum("bk,cdk->bcd", g, sketch)
    gradient = np.einsum("bnd,bcd->bnc", x, pairs + pairs.transpose(0, 2, 1))
    return {"y": y, "grad/x": gradient.reshape(golden["x"].shape)}


def errors(name: str, folder: Path = FOLDER) -> dict[str, float]:
    """Key of the golden file → largest difference over largest entry, of `y` and each `grad/…`."""
    golden = load(name, folder)
    found = computed(cases()[name], golden)
    assert found.keys() == {key for key in golden if key == "y" or _is_gradient(key)}
    return differences(found, golden)


def differences(found, golden) -> dict[str, float]:
    """Key → largest difference over largest entry.

    A gradient that is rounding error in the original, that of a bias whose effect the next batch
    norm removes, is measured against the largest entry of all the case's gradients.
    """
    largest = {key: np.abs(golden[key]).max() for key in found}
    gradient = max(largest[key] for key in found if key != "y")
    result = {}
    for key, ours in found.items():
        ours = ours.ravel()[:: int(golden.get(f"every/{key}", 1))]
        zero = key != "y" and largest[key] < 1e-5 * gradient
        scale = gradient if zero else largest[key]
        result[key] = float(np.abs(ours - golden[key].ravel()).max() / scale)
    return result


def _is_gradient(key):
    return key.startswith("grad/")


def load(name: str, folder: Path = FOLDER) -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}.npz") as file:
        return dict(file)


def copy(source: Path) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in cases():
        kept = {}
        for key, value in load(name, source).items():
            kept[key] = value
            if (key == "y" or _is_gradient(key)) and value.size > KEPT:
                # An odd step meets all channels, whose number is even.
                step = value.size // KEPT | 1
                kept |= {key: value.ravel()[::step], f"every/{key}": np.asarray(step)}
        np.savez_compressed(FOLDER / f"{name}.npz", **kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=Path, default=FOLDER, metavar="DIR")
    parser.add_argument("--copy", action="store_true")
    arguments = parser.parse_args()
    if arguments.copy:
        copy(arguments.golden)
    print(f"On {jax.devices()[0].device_kind}; errors relative to the largest entry.")
    print(f"{'case':31} {'output':>8} {'gradients':>10}  of")
    for name in cases():
        _print_row(name, errors(name, arguments.golden))
    golden = load("compact_bilinear", arguments.golden)
    exact = compact_bilinear_float64(golden)
    ours = computed(cases()["compact_bilinear"], golden)
    _print_row("compact_bilinear to float64", differences(ours, exact))
    original = {key: golden[key] for key in exact}
    _print_row("  the original to float64", differences(original, exact))


def _print_row(name, found):
    gradients = {key: error for key, error in found.items() if key != "y"}
    key = max(gradients, key=gradients.get)
    worst = key.removeprefix("grad/").removeprefix("param/")
    print(f"{name:31} {found['y']:8.1e} {gradients[key]:10.1e}  {worst}", flush=True)


if __name__ == "__main__":
    main()
