"""MobileNet of CGD."""

import numpy as np
import pytest

from sop.errors import UsageError
from tests.models import tracing


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({}, 4_231_976),
        ({"attention": "cgd"}, 4_261_736),
        ({"attention": "cgd", "multiplier": 0.7}, 2_322_926),
    ],
)
def test_parameter_count_is_the_originals(config, count):
    _, shapes, _, _ = tracing.trace({"backbone": "mobilenet", **config}, 32, 1000)
    assert tracing.parameters(shapes) == count


def test_widths_at_seven_tenths():
    _, shapes, features, _ = tracing.trace({"backbone": "mobilenet", "multiplier": 0.7}, 224)
    widths = [shapes[f"params/features/layers_{i}/conv2/kernel"][-1] for i in range(13)]
    assert shapes["params/features/conv1/kernel"] == (3, 3, 3, 22)
    assert widths == [45, 90, 90, 179, 179, *[358] * 6, 717, 717]
    assert features == (2, 14, 14, 717)


@pytest.mark.parametrize("name", tracing.REPRESENTATIONS)
def test_representations(name):
    tracing.check_representation({"backbone": "mobilenet"}, name)


@pytest.mark.parametrize("name", tracing.ATTENTIONS)
def test_attention(name):
    _, shapes, _, _ = tracing.trace({"backbone": "mobilenet", "attention": name}, 32)
    last = {f"layers_{i}" for i in (0, 2, 4, 10, 12)}
    every = {f"layers_{i}" for i in range(13)}
    assert tracing.places(shapes, "attention") == (last if "gsop" in name else every)
    if name == "cgd":  # after the depthwise convolution, before the pointwise one widens
        assert shapes["params/features/layers_3/attention/w0"] == (128,)


@pytest.mark.parametrize("name", tracing.POOLS)
def test_pooling_takes_the_place_of_strides(name):
    _, shapes, features, _ = tracing.trace({"backbone": "mobilenet", "pool": name}, 64)
    assert features == (2, 4, 4, 1024)
    pools = {f"layers_{i}" for i in (1, 3, 5, 11)} if name == "gfgp" else set()
    assert tracing.places(shapes, "pool") == pools


def test_smallest_images():
    tracing.check_smallest({"backbone": "mobilenet", "pool": "average"}, 16)


def test_initialisation_is_pytorchs():
    values = tracing.initial({"backbone": "mobilenet"}, 16, ("layers_12",))
    for name, fan_in in (("conv1", 9), ("conv2", 1024)):
        largest = np.abs(values[f"features/layers_12/{name}/kernel"]).max()
        assert 0.9 * fan_in**-0.5 < largest <= fan_in**-0.5


def test_refuses_a_multiplier_that_leaves_nothing():
    with pytest.raises(UsageError, match=r"'multiplier' .* from 0\.03125 to 32"):
        tracing.trace({"backbone": "mobilenet", "multiplier": 0.0}, 32)


def test_types():
    tracing.check_types({"backbone": "mobilenet", "attention": "cgd"})
