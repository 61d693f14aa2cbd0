"""DenseNet and GFGP's forms of it."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from sop.layers import BatchNorm
from sop.models import create_model, get_backbone
from sop.models.densenet import DenseLayer
from sop.torch_weights.names import canonical
from tests.models import tracing

TRANSITIONS = {f"transition{i}/pool" for i in (1, 2, 3)}


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"backbone": "densenet121"}, 7_978_856),
        ({"backbone": "densenet121", "pool": "gfgp"}, 8_337_512),
        pytest.param(
            {"backbone": "densenet169", "pool": "gfgp"}, 14_656_424, marks=pytest.mark.heavy
        ),
        pytest.param(
            {"backbone": "densenet169", "pool": "average"}, 14_151_528, marks=pytest.mark.heavy
        ),
        pytest.param(
            {"backbone": "densenet169", "pool": "skip"}, 14_149_480, marks=pytest.mark.heavy
        ),
        pytest.param({"backbone": "densenet161"}, 28_681_000, marks=pytest.mark.heavy),
        pytest.param({"backbone": "densenet169"}, 14_149_480, marks=pytest.mark.heavy),
        pytest.param({"backbone": "densenet201"}, 20_013_928, marks=pytest.mark.heavy),
    ],
)
def test_parameter_count_is_the_originals(config, count):
    _, shapes, _, _ = tracing.trace(config, num_classes=1000)
    assert tracing.parameters(shapes) == count


@pytest.mark.parametrize("name", ["max", "average", "skip", "gfgp"])
def test_pooling(name):
    _, shapes, features, _ = tracing.trace({"backbone": "densenet121", "pool": name}, 224)
    assert features == (2, 7, 7, 1024)
    pools = {p.partition("/features/")[2].rpartition("/squeeze/")[0] for p in shapes}
    assert pools - {""} == ({"pool00", "pool0"} | TRANSITIONS if name == "gfgp" else set())
    norms = {path for path in shapes if "transition" in path and "norm2/scale" in path}
    assert len(norms) == (0 if name == "skip" else 3)


@pytest.mark.parametrize("name", ["mpncov", "bcnn"])
def test_representations(name):
    tracing.check_representation({"backbone": "densenet121"}, name)


@pytest.mark.parametrize("name", ["gsop", "cgd"])
def test_attention(name):
    _, shapes, _, _ = tracing.trace({"backbone": "densenet121", "attention": name}, 64)
    sizes = (6, 12, 24, 16)
    last = {f"denseblock{i}/denselayer{size}" for i, size in enumerate(sizes, 1)}
    every = {
        f"denseblock{i}/denselayer{j}"
        for i, size in enumerate(sizes, 1)
        for j in range(1, size + 1)
    }
    assert tracing.places(shapes, "attention") == (every if name == "cgd" else last)
    width = {"cgd": (128,), "gsop": (1, 1, 256, 128)}[name]
    leaf = {"cgd": "w0", "gsop": "channel/reduce/kernel"}[name]
    assert shapes[f"params/features/denseblock1/denselayer6/attention/{leaf}"] == width


@pytest.mark.parametrize(("config", "size"), [({}, 29), ({"pool": "max_entropy"}, 30)])
def test_smallest_images(config, size):
    tracing.check_smallest({"backbone": "densenet121", **config}, size)


def test_initialisation():
    config = {"backbone": "densenet121", "pool": "gfgp"}
    values = tracing.initial(config, 30, ("denselayer24/conv2", "transition3/pool", "classifier"))
    layer = values["features/denseblock3/denselayer24/conv2/kernel"]
    np.testing.assert_allclose(layer.std(), (2 / (9 * 128)) ** 0.5, rtol=0.02)
    assert np.abs(layer).max() > 3 * layer.std()  # nothing is cut off
    pool = values["features/transition3/pool/squeeze/kernel"]
    np.testing.assert_allclose(pool.std(), (2 / 512) ** 0.5, rtol=0.02)
    assert not values["classifier/bias"].any()
    # fast MPN-COV's classifier is a new Linear.
    model = create_model({"backbone": "densenet121", "num_classes": 10})
    assert model.classifier.bias_init is None


def test_drop_rate_drops_new_features_in_training():
    layer = DenseLayer(4, 0.5, None, nn.Conv, BatchNorm)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 6))
    variables = layer.init(jax.random.key(1), x, False)
    rngs = {"dropout": jax.random.key(2)}
    y, _ = layer.apply(variables, x, True, rngs=rngs, mutable=["batch_stats"])
    np.testing.assert_array_equal(y[..., :6], x)
    assert 0.4 < (y[..., 6:] == 0).mean() < 0.6
    assert (layer.apply(variables, x, False)[..., 6:] != 0).all()
    model = create_model({"backbone": "densenet121", "num_classes": 10, "dropout": 0.2})
    assert model.features.layer.keywords["dropout"] == 0.2


def test_types():
    tracing.check_types({"backbone": "densenet121", "pool": "gfgp"})


def test_early_files_put_a_dot_before_numbers():
    old = "features.denseblock1.denselayer2.norm.1.weight"
    new = "features.denseblock1.denselayer2.norm1.weight"
    rules = get_backbone({"backbone": "densenet121"}).torch_names
    assert canonical(old, rules) == new
    assert canonical("classifier.bias", rules) == "classifier.bias"
