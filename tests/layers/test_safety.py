"""Outputs and gradients of every layer are finite for the inputs that break the originals.

And what is not finite is not hidden: one NaN, ∞ or −∞ in an image makes the layer's output for this
image not finite, unless the equation itself discards it, as maximum pooling and ReLU do with −∞. In
evaluation the other images of the batch do not notice.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.layers import zoo

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
# Six positions are fewer than the eight channels. Layers that take no single channel meet few
# positions in place of it.
SHAPES = {"few positions": (2, 3), "one position": (1, 1), "one channel": (3, 3)}


def hard_inputs(shape, dtype):
    normal = np.random.default_rng(1).standard_normal(shape)
    outlier = normal.copy()
    outlier[0, 0, 0, 0] = 6e4 if dtype == jnp.float16 else 1e9
    inputs = {
        "normal": normal,
        "zeros": np.zeros(shape),
        "constant map": np.full(shape, 3.3),
        "constant of each channel": np.broadcast_to(normal[:, :1, :1], shape),
        "identical samples": np.broadcast_to(normal[:1], shape),
        "times 1e-20": normal * 1e-20,
        "times 1e-6": normal * 1e-6,
        "times 1e4": normal * 1e4,
        "one outlier": outlier,
    }
    if dtype != jnp.float16:
        inputs["times 1e9"] = normal * 1e9
    return list(inputs), np.stack(list(inputs.values())).astype(dtype)


POISON = (np.nan, np.inf, -np.inf)
# ReLU(x·p) of −∞ is 0, max(x, ε) is ε, and the largest of a window or of two terms is not −∞.
DISCARD_MINUS_INFINITY = {
    "MaxPool",
    "GlobalMax",
    "GlobalAverage hidden",
    "GeneralizedMean",
    "GeneralizedMean channel",
    "GeneralizedMean fixed",
    "GSoP position",
    "GSoP position grid",
    "GSoP fusion_max",
}


def poisoned(normal):
    """[3, *shape]: the normal input with one entry of its first image replaced."""
    found = np.stack([normal] * len(POISON))
    found[:, 0, 0, 0, 0] = POISON
    return found


def assert_not_hidden(name, normal, y, gradient):
    """Of the poisoned inputs, y and gradient [3, B, …]; of the normal one, a pair of [B, …]."""
    for value, *found in zip(POISON, y, gradient, strict=True):
        if value != -np.inf or name not in DISCARD_MINUS_INFINITY:
            assert not np.isfinite(np.float32(found[0][0])).all(), value
        for a, b in zip(found, normal, strict=True):
            np.testing.assert_array_equal(np.float32(a[1:]), np.float32(b[1:]), err_msg=value)


def assert_finite(names, tree):
    """The first len(names) entries of all leaves."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf = np.float32(leaf[: len(names)])
        finite = np.isfinite(leaf).reshape(len(names), -1).all(1)
        broken = [name for name, fine in zip(names, finite, strict=True) if not fine]
        assert not broken, (jax.tree_util.keystr(path), broken)


def outputs_and_gradients(module, train):
    """(x, variables) → y, gradients of x and of every parameter, new batch statistics."""

    def run(x, variables):
        others = {key: value for key, value in variables.items() if key != "params"}

        def apply(x, params):
            given = {**others, "params": params}
            rngs = {"dropout": jax.random.key(0)}
            return module.apply(given, x, train, mutable=["batch_stats"], rngs=rngs)

        y, pullback, statistics = jax.vjp(apply, x, variables.get("params", {}), has_aux=True)
        cotangent = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return y, pullback(cotangent.astype(y.dtype)), statistics

    return run


# Variants that meet a single position or channel as another layer of the list does.
FEW_POSITIONS_ONLY = {
    "GlobalAverage hidden",
    "GeneralizedMean fixed",
    "MPNCOV matrix",
    "BilinearCNN matrix",
    "MPNCOV eigh 0.3",
    "MPNCOV element",
    "GaussianPooling reduced",
    "IterNorm groups",
    "GSoP channel",
    "GSoP position",
    "GSoP fusion_max",
    "CGD linear",
    "MaxEntropyPool",
    "MaxEntropyPool channel",
    "GFGP softplus",
}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize(
    ("name", "size"),
    [
        (name, size)
        for name in zoo.LAYERS
        for size in SHAPES
        if size == "few positions" or name not in FEW_POSITIONS_ONLY
        if size != "one channel" or zoo.channels(name) == zoo.CHANNELS
    ],
)
def test_finite_where_the_input_is(name, size, dtype):
    channels = zoo.channels(name)
    if size == "one channel":
        channels = 1
    names, inputs = hard_inputs((3, *SHAPES[size], channels), dtype)
    module = zoo.LAYERS[name]
    variables = zoo.variables(module, inputs[0])
    for train in (False, True) if zoo.changes_in_training(variables) else (False,):
        run = outputs_and_gradients(module, train)
        mapped = jax.jit(lambda xs, run=run: jax.lax.map(lambda x: run(x, variables), xs))
        found = jax.device_get(mapped(np.concatenate([inputs, poisoned(inputs[0])])))
        assert_finite(names, found)
        if not train:
            y, (gradient, _), _ = found
            normal, count = (y[0], gradient[0]), len(names)
            assert_not_hidden(name, normal, y[count:], gradient[count:])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_finite_for_every_lambda(dtype):
    module = zoo.LAYERS["MaxEntropyPool constant"]
    names, inputs = hard_inputs((2, 3, 4, 2), dtype)
    lambdas = jnp.array([0, 1e-8, 50, 1e4])
    run = outputs_and_gradients(module, False)

    @jax.jit
    def all_of_them(xs):
        over_lambda = jax.vmap(run, (None, {"params": {"lam": 0}}))
        variables = {"params": {"lam": lambdas[:, None]}}
        return jax.lax.map(lambda x: over_lambda(x, variables), xs)

    assert_finite(names, all_of_them(inputs))
