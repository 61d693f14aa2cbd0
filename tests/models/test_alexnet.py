"""AlexNet."""

import numpy as np
import pytest

from sop.errors import UsageError
from sop.models import create_model
from tests.models import tracing


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({}, 61_100_840),
        ({"representation": "gavp"}, 24_400_680),
        ({"representation": "mpncov"}, 158_160_168),
    ],
)
def test_parameter_count_is_the_originals(config, count):
    _, shapes, _, _ = tracing.trace({"backbone": "alexnet", **config}, num_classes=1000)
    assert tracing.parameters(shapes) == count


def test_last_pooling_gives_way_to_a_representation():
    assert tracing.trace({"backbone": "alexnet"}, 224)[2] == (2, 6, 6, 256)
    config = {"backbone": "alexnet", "representation": "mpncov"}
    assert tracing.trace(config, 224)[2] == (2, 13, 13, 256)


@pytest.mark.parametrize("name", tracing.REPRESENTATIONS)
def test_representations(name):
    tracing.check_representation({"backbone": "alexnet"}, name)


@pytest.mark.parametrize("name", tracing.ATTENTIONS)
def test_attention(name):
    _, shapes, _, _ = tracing.trace({"backbone": "alexnet", "attention": name}, 64)
    last = {"conv1", "conv2", "conv5"}
    every = {*last, "conv3", "conv4"}
    assert tracing.places(shapes, "attention") == (last if "gsop" in name else every)


@pytest.mark.parametrize("name", tracing.POOLS)
def test_pooling(name):
    _, shapes, features, _ = tracing.trace({"backbone": "alexnet", "pool": name}, 224)
    assert features == (2, 6, 6, 256)
    pools = {path.split("/")[2] for path in shapes if "/pool" in path}
    assert pools == ({"pool1", "pool2", "pool5"} if name in ("skip", "gfgp") else set())


@pytest.mark.parametrize(("config", "size"), [({}, 63), ({"representation": "gavp"}, 31)])
def test_smallest_images(config, size):
    tracing.check_smallest({"backbone": "alexnet", **config}, size)


def test_initialisation_is_pytorchs():
    values = tracing.initial({"backbone": "alexnet"}, 63, ("conv2", "fc3"))
    for place, fan_in in (("features/conv2/conv", 25 * 64), ("classifier/fc3", 4096)):
        for leaf in ("kernel", "bias"):
            largest = np.abs(values[f"{place}/{leaf}"]).max()
            assert 0.5 * fan_in**-0.5 < largest <= fan_in**-0.5


def test_types():
    tracing.check_types({"backbone": "alexnet"})


@pytest.mark.parametrize("backbone", ["alexnet", "vgg16", "squeezenet1_1", "inception_v3"])
def test_refuses_a_dropout_that_is_no_rate(backbone):
    with pytest.raises(
        UsageError, match=r"'dropout' of backbone '\w+' is 1\.5 but must be a number"
    ):
        create_model({"backbone": backbone, "num_classes": 10, "dropout": 1.5})
