"""SqueezeNet 1.0 and 1.1, plain and with CGD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sop.models.squeezenet import ConvClassifier
from tests.models import tracing


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"backbone": "squeezenet1_0"}, 1_248_424),
        ({"backbone": "squeezenet1_1"}, 1_235_496),
        ({"backbone": "squeezenet1_0", "attention": "cgd"}, 1_250_984),
        ({"backbone": "squeezenet1_1", "attention": "cgd"}, 1_238_056),
    ],
)
def test_parameter_count_is_the_originals(config, count):
    _, shapes, _, logits = tracing.trace(config, num_classes=1000)
    assert logits == (2, 1000)
    assert tracing.parameters(shapes) == count


def test_norm_comes_with_attention_on_the_squeeze_convolution():
    config = {"backbone": "squeezenet1_1"}
    assert not tracing.places(tracing.trace(config)[1], "bn")
    for name, count in (("cgd", 8), ("gsop", 0)):
        _, shapes, _, _ = tracing.trace({**config, "attention": name}, 64)
        assert len(tracing.places(shapes, "bn")) == count


def test_feature_maps_round_up():
    assert tracing.trace({"backbone": "squeezenet1_0"}, 224)[2] == (2, 13, 13, 512)
    assert tracing.trace({"backbone": "squeezenet1_1"}, 224)[2] == (2, 13, 13, 512)


@pytest.mark.parametrize("name", ["mpncov", "bcnn", "compact_bilinear"])
def test_representations(name):
    tracing.check_representation({"backbone": "squeezenet1_1"}, name)


def test_average_is_that_of_the_class_maps():
    _, own, _, _ = tracing.trace({"backbone": "squeezenet1_1"})
    _, named, _, _ = tracing.trace({"backbone": "squeezenet1_1", "representation": "gavp"})
    assert own == named
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
    classifier = ConvClassifier(num_classes=5, dropout=0.5)
    variables = classifier.init(jax.random.key(1), x, False)
    kernel = variables["params"]["conv10"]["kernel"][0, 0]
    expected = jnp.maximum(x @ kernel, 0).mean((1, 2))
    np.testing.assert_allclose(classifier.apply(variables, x, False), expected, atol=1e-6)


@pytest.mark.parametrize("name", tracing.ATTENTIONS)
def test_attention(name):
    _, shapes, _, _ = tracing.trace({"backbone": "squeezenet1_0", "attention": name}, 64)
    last = {"fire4", "fire8", "fire9"}
    every = {f"fire{i}" for i in range(2, 10)}
    assert tracing.places(shapes, "attention") == (last if "gsop" in name else every)


@pytest.mark.parametrize("name", tracing.POOLS)
def test_pooling(name):
    _, shapes, features, _ = tracing.trace({"backbone": "squeezenet1_1", "pool": name}, 64)
    assert features == (2, 3, 3, 512)
    pools = {path.split("/")[2] for path in shapes if "/pool" in path}
    assert pools == ({"pool1", "pool2", "pool3"} if name in ("skip", "gfgp") else set())


@pytest.mark.parametrize(("backbone", "size"), [("squeezenet1_0", 21), ("squeezenet1_1", 17)])
def test_smallest_images(backbone, size):
    tracing.check_smallest({"backbone": backbone}, size)


def test_initialisation():
    values = tracing.initial({"backbone": "squeezenet1_1"}, 32, ("fire9/expand3x3", "conv10"))
    kernel = values["features/fire9/expand3x3/kernel"]
    np.testing.assert_allclose(kernel.std(), (2 / (9 * 256)) ** 0.5, rtol=0.02)
    np.testing.assert_allclose(values["classifier/conv10/kernel"].std(), 0.01, rtol=0.05)


def test_types():
    tracing.check_types({"backbone": "squeezenet1_1", "attention": "cgd"})
