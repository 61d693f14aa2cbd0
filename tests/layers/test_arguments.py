"""What makes no sense is refused, when traced, by a sentence with argument, value and remedy."""

import doctest
import importlib
import pkgutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sop.layers
from sop import layers
from sop.errors import UsageError
from tests.layers import zoo

IMAGE = (2, 4, 4, 8)

REFUSED = [
    (partial(layers.MPNCOV, reduction=-1), "reduction of MPNCOV is -1 but must be a whole number"),
    (
        partial(layers.MPNCOV, num_iters=0),
        "num_iters of MPNCOV is 0 but must be a whole number from 1 to",
    ),
    (partial(layers.MPNCOV, num_iters=2.5), "num_iters of MPNCOV is 2.5 but"),
    (partial(layers.MPNCOV, normalization="svd"), "normalization of MPNCOV is 'svd' but must be '"),
    (partial(layers.MPNCOV, normalization="eigh", alpha=0.0), "alpha of MPNCOV is 0.0 but must be"),
    (partial(layers.MPNCOV, dropout=1.0), r"dropout of MPNCOV is 1\.0 but"),
    (partial(layers.GlobalAverage, hidden=0), "hidden of GlobalAverage is 0 but must be a whole"),
    (partial(layers.GeneralizedMean, epsilon=0.0), "epsilon of GeneralizedMean is 0.0 but must be"),
    (partial(layers.ISICE, num_steps=1), "num_steps of ISICE is 1 but must be a whole number"),
    (partial(layers.CompactBilinear, 0), "projected_dim of CompactBilinear is 0 but"),
    (partial(layers.CompactBilinear, seed=-1), "seed of CompactBilinear is -1 but"),
    (partial(layers.GSoP, dim=-3), "dim of GSoP is -3 but"),
    (partial(layers.GSoP, stride=0), "stride of GSoP is 0 but"),
    (partial(layers.GSoP, planes=0), "planes of GSoP is 0 but"),
    (partial(layers.GSoP, manner="both"), "manner of GSoP is 'both' but must be 'channel'"),
    (partial(layers.GSoP, manner="fusion_concat"), "got 8 channels: give a multiple of 64"),
    (partial(layers.CompactGSoP, dim=0), "dim of CompactGSoP is 0 but"),
    (partial(layers.GFGP, activation="tanh"), "activation of GFGP is 'tanh' but must be 'sigmoid'"),
    (partial(layers.MaxEntropyPool, learned="all"), "learned of MaxEntropyPool is 'all' but must"),
    (partial(layers.MaxPool, 5), "window is 5 for 4 positions padded by 0: shrink it"),
    (partial(layers.MaxPool, 2, padding=2), "padding is 2: it must be at most half of the window"),
    (partial(layers.AveragePool, 0), "window of AveragePool is 0 but must be a whole number"),
    (partial(layers.SkipPool, (2, 2, 2)), r"window of SkipPool is \(2, 2, 2\) but"),
    (partial(layers.GFGP, 2, strides=-1), "strides of GFGP is -1 but"),
]


@pytest.mark.parametrize(("make", "sentence"), REFUSED)
def test_option(make, sentence, unchecked):
    with pytest.raises(UsageError, match=sentence):
        jax.eval_shape(lambda x: make().init(jax.random.key(0), x, False), jnp.zeros(IMAGE))


@pytest.mark.parametrize("name", zoo.LAYERS)
def test_input(name, unchecked):
    module = zoo.LAYERS[name]
    kind = type(module).__name__
    for x, sentence in (
        (jnp.zeros((4, 8)), f"{kind} got x of shape .*: give a feature map"),
        (jnp.zeros(IMAGE, jnp.int32), f"{kind} got x of dtype int32: cast it"),
        (jnp.zeros((2, 0, 4, 8)), f"{kind} got x of shape .*: every axis must be at least 1"),
    ):
        with pytest.raises(UsageError, match=sentence):
            jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), x)


@pytest.mark.parametrize("name", zoo.LAYERS)
def test_tokens_are_the_positions_of_a_map_to_representations_alone(name, unchecked):
    module = zoo.LAYERS[name]
    x = jax.random.normal(jax.random.key(0), (2, 2, 3, zoo.channels(name)))
    tokens = x.reshape(2, 6, -1)
    variables = zoo.variables(module, x)
    if name in zoo.REPRESENTATIONS:
        np.testing.assert_allclose(
            module.apply(variables, tokens, False), module.apply(variables, x, False), atol=1e-6
        )
    else:
        with pytest.raises(UsageError, match=r"give a feature map \[B, H, W, C\]\."):
            module.apply(variables, tokens, False)


@pytest.mark.parametrize("name", [info.name for info in pkgutil.iter_modules(sop.layers.__path__)])
def test_examples_of_the_docstrings(name):
    module = importlib.import_module(f"sop.layers.{name}")
    assert doctest.testmod(module).failed == 0


def test_every_public_layer_has_an_example_and_a_paper():
    for name in sop.layers.__all__:
        text = getattr(sop.layers, name).__doc__
        assert ">>>" in text and "Returns:" in text and "Raises:" in text, name
