"""Stages, representation and logits of one forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sop.errors import UsageError
from sop.models import create_model
from sop.models.features import features, pyramid


@pytest.mark.parametrize(
    ("backbone", "levels"),
    [
        ("resnet50", {"layer1": (4, 256), "layer3": (16, 1024), "layer4": (32, 2048)}),
        ("vgg11", {"conv1_1": (1, 64), "conv5_2": (16, 512), "pool5": (32, 512)}),
        ("mobilenet", {"layers_0": (1, 64), "layers_4": (4, 256), "layers_12": (16, 1024)}),
        ("wrn16_4_cifar", {"block1": (1, 64), "block2": (2, 128), "block3": (4, 256)}),
    ],
)
def test_levels(backbone, levels):
    found = pyramid({"backbone": backbone, "num_classes": 10})
    assert {name: tuple(found[name]) for name in levels} == levels
    strides = [level.stride for level in found.values()]
    assert strides == sorted(strides)


def test_last_stride_and_size_are_the_networks():
    config = {"backbone": "resnet18", "num_classes": 10, "representation": "mpncov"}
    found = pyramid(config, image_size=64)
    assert found["layer3"] == (16, 256) and found["layer4"] == (16, 512)
    with pytest.raises(UsageError, match="image_size is -3"):
        pyramid(config, image_size=-3)


def test_what_comes_out_is_what_the_network_computes():
    config = {"backbone": "preresnet8_cifar", "num_classes": 10, "attention": "cgd"}
    network = create_model(config)
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    variables = jax.jit(lambda: network.init(jax.random.key(1), images, train=False))()
    found = jax.jit(lambda v, x: features(network, v, x))(variables, images)
    expected = jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, images)
    np.testing.assert_allclose(found.logits, expected, rtol=1e-6)
    # The last stage is the feature map: average and classifier make the logits of it.
    head = variables["params"]["classifier"]
    mean = found.stages["layer3"].mean((1, 2))
    np.testing.assert_allclose(found.representation, mean, rtol=1e-5)
    np.testing.assert_allclose(mean @ head["kernel"] + head["bias"], expected, rtol=1e-4, atol=1e-5)
    assert jnp.isfinite(
        jax.grad(lambda x: features(network, variables, x).stages["layer1"].sum())(images)
    ).all()
