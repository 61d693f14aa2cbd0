"""What the compiled steps do on accelerators, read from their programs; none is needed."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from sop.config import get_config
from sop.layers import MPNCOV
from sop.models import create_model
from sop.training.optimizer import make_optimizer
from sop.training.state import init_state, init_variables
from sop.training.step import (
    batch_shapes,
    data_parallel,
    make_eval_step,
    make_mesh,
    make_train_step,
    replicated,
)

PLATFORMS = ("cuda", "tpu")
# What a program for GPUs may call.
LISTED = set(
    re.findall(
        r"^\| `(\w+)` \|",
        (Path(__file__).parents[2] / "docs/accelerators.md").read_text(),
        re.MULTILINE,
    )
)
DEVICES, ROWS, SIZE, CLASSES = 4, 8, 32, 10
METHODS = {
    "plain": {},
    "mpncov": {"representation": {"name": "mpncov", "reduction": 48}},
    "gsop": {"attention": {"name": "gsop", "dim": 16}},
    "cgd": {"attention": "cgd"},
    "gfgp": {"pool": "gfgp"},
}
# Products of feature maps have this many values and more; those of vectors and kernels fewer.
LARGE = ROWS // DEVICES * 8 * 8 * 16


def steps(method, dtype):
    """Jitted steps of training and evaluation on simulated devices, and the shapes they take."""
    config = {"backbone": "resnet8_cifar", "num_classes": CLASSES, **METHODS[method]}
    model = create_model(config, dtype=dtype)
    start = partial(init_variables, model, 0, (SIZE, SIZE, 3))
    params = jax.eval_shape(start)["params"]
    tx = make_optimizer(get_config().optimizer, lambda _: 0.1, params)
    mesh = make_mesh(jax.devices()[:DEVICES])

    def scaled(images):
        return images.astype(dtype) / 255

    train = data_parallel(make_train_step(model, tx, normalize=scaled), mesh, donate=True)
    evaluation = data_parallel(make_eval_step(model, normalize=scaled), mesh)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
        jax.eval_shape(lambda: init_state(start(), tx)),
    )
    rows = {"image": ((SIZE, SIZE, 3), jnp.uint8), "label": ((), jnp.int32)}
    shapes = partial(batch_shapes, mesh, ROWS)
    masked = shapes({**rows, "mask": ((), jnp.bool_)})
    return (train, state, shapes(rows)), (evaluation, state.variables, masked)


@pytest.fixture(scope="module")
def traced():
    """(method, dtype) → traces of training and evaluation, made once."""
    found = {}

    def get(method, dtype):
        if (method, dtype) not in found:
            found[method, dtype] = [f.trace(*given) for f, *given in steps(method, dtype)]
        return found[method, dtype]

    return get


def products(program):
    """Operation, types of its two factors, type of its result, for each product and convolution."""
    pattern = r"stablehlo\.(dot_general|convolution)\b.*: \(tensor<(\S+)>, tensor<(\S+)>\) -> "
    return [found.groups() for found in re.finditer(pattern + r"tensor<(\S+)>", program)]


def calls(program):
    """Names of the functions of libraries that a program calls."""
    return set(re.findall(r"custom_call @(\w+)", program))


def values(tensor):
    *sizes, _ = tensor.split("x")
    return int(jnp.prod(jnp.array([1, *map(int, sizes)])))


@pytest.mark.parametrize("method", METHODS)
def test_steps_lower_for_accelerators(method, traced):
    """Nothing of the host's is called, and what is for the CPU alone (a barrier) is not there.

    Max-entropy pooling has barriers of its own, in the backward pass: one for each pooling.
    """
    for step, barriers in zip(traced(method, jnp.bfloat16), (method == "gfgp", False), strict=True):
        for platform in PLATFORMS:
            program = step.lower(lowering_platforms=(platform,)).as_text()
            assert not {name for name in calls(program) if "callback" in name.lower()}
            assert platform != "cuda" or calls(program) <= LISTED
            assert not re.search(r"stablehlo\.(infeed|outfeed|send|recv)\b", program)
            assert ("optimization_barrier" in program) == barriers


@pytest.mark.parametrize("normalization", ["eigh", "pade_lyapunov", "eigh_pade", "log", "element"])
def test_what_becomes_a_call_of_a_library_on_gpus_is_listed(normalization):
    layer = MPNCOV(normalization=normalization)

    def both(x):
        y, pullback = jax.vjp(lambda x: layer.apply({}, x, train=True), x)
        return pullback(y)

    x = jax.ShapeDtypeStruct((2, 3, 3, 4), jnp.float32)
    found = calls(jax.jit(both).trace(x).lower(lowering_platforms=("cuda",)).as_text())
    assert found <= LISTED
    assert bool(found) == (normalization != "element")


@pytest.mark.parametrize("method", METHODS)
def test_feature_maps_are_multiplied_in_half_precision(method, traced):
    """In a run in bfloat16; what is meant to be float32 has both factors so."""
    train, _ = traced(method, jnp.bfloat16)
    found = products(train.lower(lowering_platforms=("tpu",)).as_text())
    assert any(name == "convolution" for name, *_ in found)
    for name, a, b, _ in found:
        if name == "convolution":
            assert a.endswith("bf16") and b.endswith("bf16")
        if max(values(a), values(b)) >= LARGE:
            assert a.endswith("bf16") == b.endswith("bf16"), (name, a, b)


def test_the_state_is_updated_in_its_place(traced):
    """Every array of the state has its memory taken over by one of the new state."""
    train, _ = traced("plain", jnp.float32)
    compiled = train.lower().compile()
    _, state, _ = steps("plain", jnp.float32)[0]
    taken = re.search(r"input_output_alias=\{(.*?)\}, entry", compiled.as_text())[1]
    assert taken.count("may-alias") + taken.count("must-alias") == len(jax.tree.leaves(state))


def test_gradients_travel_together(traced):
    """XLA makes few all-reduces of those of single arrays."""
    train, _ = traced("plain", jnp.float32)
    written = train.lower().as_text().count("stablehlo.all_reduce")
    compiled = train.lower().compile().as_text()
    assert written > 30
    assert len(re.findall(r"= .*all-reduce(?:-start)?\(", compiled)) <= 3
