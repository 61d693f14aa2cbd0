"""What makes no sense is refused, when traced, by a sentence with argument, value and remedy."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import pytest

import sop.layers
from sop import layers
from tests.layers import zoo

IMAGE = (2, 4, 4, 8)

REFUSED = [
    (layers.MPNCOV(reduction=-1), IMAGE, "MPNCOV got reduction -1: give a whole number"),
    (layers.MPNCOV(num_iters=0), IMAGE, "MPNCOV got num_iters 0: give a whole number"),
    (layers.MPNCOV(num_iters=2.5), IMAGE, "MPNCOV got num_iters 2.5: give a whole number"),
    (layers.MPNCOV(normalization="svd"), IMAGE, "got normalization 'svd': give one of 'newton_sch"),
    (layers.MPNCOV(normalization="eigh", alpha=0.0), IMAGE, "alpha is 0.0: give a power above 0"),
    (layers.MPNCOV(dropout=1.0), IMAGE, r"MPNCOV got dropout 1.0: give a rate in \[0, 1\)"),
    (layers.CompactBilinear(0), IMAGE, "CompactBilinear got projected_dim 0: give a whole number"),
    (layers.CompactBilinear(seed=-1), IMAGE, "CompactBilinear got seed -1: give a whole number"),
    (layers.GSoP(dim=-3), IMAGE, "GSoP got dim -3: give a whole number"),
    (layers.GSoP(stride=0), IMAGE, "GSoP got stride 0: give a whole number"),
    (layers.GSoP(manner="both"), IMAGE, "GSoP got manner 'both': give one of 'channel', 'posit"),
    (layers.GSoP(manner="fusion_concat"), IMAGE, "got 8 channels: give a multiple of 64"),
    (layers.CompactGSoP(dim=0), IMAGE, "CompactGSoP got dim 0: give a whole number"),
    (layers.GFGP(activation="tanh"), IMAGE, "GFGP got activation 'tanh': give one of 'sigmoid'"),
    (layers.MaxEntropyPool(learned="all"), IMAGE, "MaxEntropyPool got learned 'all': give one of"),
    (layers.MaxPool(5), IMAGE, "window is 5 for 4 positions padded by 0: shrink it"),
    (layers.MaxPool(2, padding=2), IMAGE, "padding is 2: it must be at most half of the window"),
    (layers.AveragePool(0), IMAGE, r"window is \(0, 0\): give a pair of ints of at least 1"),
    (layers.SkipPool((2, 2, 2)), IMAGE, r"window is \(2, 2, 2\): give a pair of ints"),
    (layers.GFGP(2, strides=-1), IMAGE, r"strides is \(-1, -1\): give a pair of ints"),
]


@pytest.mark.parametrize(("module", "shape", "sentence"), REFUSED)
def test_option(module, shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), jnp.zeros(shape))


@pytest.mark.parametrize("name", zoo.LAYERS)
def test_input(name):
    module = zoo.LAYERS[name]
    kind = type(module).__name__
    for x, sentence in (
        (jnp.zeros((4, 4, 8)), f"{kind} got x of shape .*: give a feature map"),
        (jnp.zeros(IMAGE, jnp.int32), f"{kind} got x of dtype int32: cast it"),
        (jnp.zeros((2, 0, 4, 8)), f"{kind} got x of shape .*: every axis must be at least 1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), x)


@pytest.mark.parametrize("name", [info.name for info in pkgutil.iter_modules(sop.layers.__path__)])
def test_examples_of_the_docstrings(name):
    module = importlib.import_module(f"sop.layers.{name}")
    assert doctest.testmod(module).failed == 0


def test_every_public_layer_has_an_example_and_a_paper():
    for name in sop.layers.__all__:
        text = getattr(sop.layers, name).__doc__
        assert ">>>" in text and "Returns:" in text and "Raises:" in text, name
