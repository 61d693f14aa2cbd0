"""State dicts of PyTorch's, in memory and in files, that are not what they should be."""

import functools
import random

import jax
import numpy as np
from safetensors.numpy import save_file

from sop.errors import UsageError
from sop.models import create_model
from sop.torch_weights import convert, read, to_state_dict
from sop.torch_weights.engine import init
from tests.torture.runs import WAYS
from tests.torture.trial import Bench, Trial

_CONFIG = {
    "backbone": "resnet8_cifar",
    "num_classes": 3,
    "attention": "cgd",
    "representation": {"name": "mpncov", "reduction": 4},
}
_VALUES = {
    "with a NaN": lambda x: np.where(np.arange(x.size).reshape(x.shape) == 0, np.nan, x),
    "infinite": lambda x: x / np.zeros_like(x),
    "negated": lambda x: -x - 1,
    "complex": lambda x: x + 1j,
    "of integers": lambda x: x.astype(np.int64),
    "boolean": lambda x: x > 0,
    "of objects": lambda x: x.astype(object),
    "in float16": lambda x: x.astype(np.float16),
    "in float64, beyond float32": lambda x: x.astype(np.float64) * 1e300 + 1e300,
    "transposed": lambda x: x.T,
    "with an axis more": lambda x: x[None],
    "without its first": lambda x: x[1:],
    "empty": lambda x: x[:0],
    "a list": lambda x: x.tolist(),
    "None": lambda x: None,
    "a mapping": lambda x: {"weight": x},
}


def state_dict(rng: random.Random, bench: Bench) -> Trial:
    """Refused in one sentence, or taken, and then finite with variances that are none below 0."""
    in_file = rng.random() < 0.5
    way = rng.choice([*(WAYS if in_file else _VALUES), "renamed", "removed", "doubled"])
    name = rng.choice(sorted(_weights()))
    changes = random.Random(rng.random())
    path = bench.new_folder().with_suffix(".safetensors")

    def run() -> None:
        weights = _change(dict(_weights()), name, way)
        try:
            if in_file:
                save_file(weights, path)
                if way in WAYS:
                    path.write_bytes(WAYS[way](path.read_bytes(), changes))
                weights = read(path)
            variables = convert(weights, _CONFIG)
        except UsageError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000, str(error)[:2000]
            return
        finally:
            path.unlink(missing_ok=True)
        for place, leaf in jax.tree_util.tree_leaves_with_path(variables):
            assert np.isfinite(leaf).all(), f"{jax.tree_util.keystr(place)} is not finite"
            if "var" in jax.tree_util.keystr(place):
                assert (leaf >= 0).all(), f"{jax.tree_util.keystr(place)} is negative"

    where = "a file of weights" if in_file and way in WAYS else f"'{name}'"
    return Trial(f"{where} {way}", run)


@functools.cache
def _weights() -> dict[str, np.ndarray]:
    variables = jax.jit(lambda: init(create_model(_CONFIG)))()
    return to_state_dict(jax.tree.map(np.asarray, variables), _CONFIG)


def _change(weights: dict, name: str, way: str) -> dict:
    match way:
        case "removed":
            del weights[name]
        case "renamed":
            weights[f"{name}0"] = weights.pop(name)
        case "doubled":
            weights[f"module.{name}"] = weights[name] + 1
        case _ if way in _VALUES:
            with np.errstate(all="ignore"):
                weights[name] = _VALUES[way](weights[name])
    return weights
