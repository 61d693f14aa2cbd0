"""VGG, VGG of GFGP, VGG-mod, VGG-16-BN of fast MPN-COV."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sop.errors import UsageError
from sop.models import create_model, get_backbone
from sop.models.plain import FlatMap, MultilayerClassifier
from tests.models import tracing

NARROW = (16, 4096)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"backbone": "vgg11"}, 132_863_336),
        ({"backbone": "vgg11_bn"}, 132_868_840),
        ({"backbone": "vgg13"}, 133_047_848),
        ({"backbone": "vgg13_bn"}, 133_053_736),
        ({"backbone": "vgg16"}, 138_357_544),
        ({"backbone": "vgg16_bn"}, 138_365_992),
        ({"backbone": "vgg19"}, 143_667_240),
        ({"backbone": "vgg19_bn"}, 143_678_248),
        ({"backbone": "vgg16_gfgp"}, 138_382_376),
        ({"backbone": "vgg16_gfgp", "pool": "gfgp"}, 138_999_304),
        ({"backbone": "vgg16_mod"}, 37_719_080),
        ({"backbone": "vgg16_mod", "pool": "gfgp"}, 38_071_560),
        ({"backbone": "vgg16_orig"}, 138_357_544),
        ({"backbone": "vgg16_bow"}, 37_694_248),
        ({"backbone": "vgg16_bn", "representation": "mpncov"}, 170_479_144),
    ],
)
def test_parameter_count_is_the_originals(config, count):
    _, shapes, _, logits = tracing.trace(config, num_classes=1000)
    assert logits == (2, 1000)
    assert tracing.parameters(shapes) == count


def test_last_pooling_gives_way_to_a_representation():
    assert tracing.trace({"backbone": "vgg16"}, 224)[2] == (2, 7, 7, 512)
    config = {"backbone": "vgg16_bn", "representation": "mpncov"}
    _, shapes, features, _ = tracing.trace(config, 224)
    assert features == (2, 14, 14, 512)
    assert shapes["params/representation/reduce/kernel"] == (1, 1, 512, 256)
    assert shapes["params/classifier/fc1/kernel"] == (32896, 4096)
    assert tracing.trace({"backbone": "vgg16_mod"}, 224)[2] == (2, 14, 14, 4096)


@pytest.mark.parametrize("name", tracing.REPRESENTATIONS)
def test_representations(name):
    tracing.check_representation({"backbone": "vgg11_bn", "hidden": (16,)}, name)


def test_bilinear_pooling_is_classified_by_one_layer():
    _, shapes, _, _ = tracing.trace({"backbone": "vgg16", "representation": "bcnn"})
    assert shapes["params/classifier/kernel"] == (512**2, 10)
    _, shapes, _, _ = tracing.trace({"backbone": "vgg16", "hidden": ()})
    assert shapes["params/classifier/kernel"] == (7 * 7 * 512, 10)


@pytest.mark.parametrize("name", tracing.ATTENTIONS)
def test_attention(name):
    _, shapes, features, _ = tracing.trace({"backbone": "vgg11_bn", "attention": name}, 64)
    assert features == (2, 2, 2, 512)
    last = {"conv1_1", "conv2_1", "conv3_2", "conv4_2", "conv5_2"}
    every = {*last, "conv3_1", "conv4_1", "conv5_1"}
    assert tracing.places(shapes, "attention") == (last if "gsop" in name else every)


@pytest.mark.parametrize("name", tracing.POOLS)
@pytest.mark.parametrize(("backbone", "count"), [("vgg11_gfgp", 5), ("vgg11_mod", 4)])
def test_pooling_stands_at_the_end_of_stages(backbone, count, name):
    _, shapes, _, _ = tracing.trace({"backbone": backbone, "pool": name})
    pools = {path.split("/")[2] for path in shapes if "/pool" in path}
    expected = {f"pool{stage}" for stage in range(1, count + 1)}
    assert pools == (expected if name in ("skip", "gfgp") else set())


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"backbone": "vgg11"}, 32),
        ({"backbone": "vgg16_mod", "pool": "gfgp"}, 16),
        ({"backbone": "vgg13_bn", "representation": "mpncov", "pool": "skip"}, 16),
    ],
)
def test_smallest_images(config, size):
    tracing.check_smallest(config, size)


def test_batch_norm_of_gfgp_has_its_epsilon():
    model = create_model({"backbone": "vgg16_gfgp", "num_classes": 10})
    assert model.features.layer.keywords["norm"]().epsilon == 1e-4
    assert model.classifier.norm().epsilon == 1e-4
    model = create_model({"backbone": "vgg16_bn", "num_classes": 10})
    assert model.features.layer.keywords["norm"]().epsilon == 1e-5


def test_flat_map_goes_channel_after_channel():
    x = jnp.arange(2 * 4 * 4 * 3.0).reshape(2, 4, 4, 3)
    y = FlatMap(2).apply({}, x, False)
    assert y.shape == (2, 12)
    means = np.asarray(x).reshape(2, 2, 2, 2, 2, 3).mean((2, 4))
    np.testing.assert_allclose(y, means.transpose(0, 3, 1, 2).reshape(2, -1), rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "conv", "deviations"),
    [
        # Kernels: He with fan-out 9·512, or 0.01. fast MPN-COV puts new Linears, U(±1/√fan_in), in
        # the place of the last, and of the first with a representation. The first's 25088×4096
        # numbers, which would take seconds to draw, are fewer.
        ({"backbone": "vgg11", "hidden": NARROW}, 1 / 48, (0.01, 0.01, 0.0090)),
        (
            {"backbone": "vgg11", "hidden": NARROW, "representation": "mpncov"},
            1 / 48,
            (0.0032, 0.01, 0.0090),
        ),
        ({"backbone": "vgg11_gfgp", "representation": "gavp"}, 0.01, (0.01, 0.01, 0.01)),
    ],
)
def test_initialisation(config, conv, deviations):
    values = tracing.initial(config, 32, ("conv5_2/conv", "classifier/fc"))
    np.testing.assert_allclose(values["features/conv5_2/conv/kernel"].std(), conv, rtol=0.01)
    assert not values["features/conv5_2/conv/bias"].any()
    for layer, deviation in enumerate(deviations, 1):
        kernel, bias = (values[f"classifier/fc{layer}/{leaf}"] for leaf in ("kernel", "bias"))
        np.testing.assert_allclose(kernel.std(), deviation, rtol=0.02)
        bound = kernel.shape[0] ** -0.5 if deviation < 0.01 else 0
        assert np.abs(bias).max() <= bound
        assert bias.any() == bool(bound)


def test_gfgp_in_vgg_starts_without_biases():
    values = tracing.initial({"backbone": "vgg11_mod", "pool": "gfgp"}, 16, ("/pool",))
    biases = [path for path in values if path.endswith(("squeeze/bias", "excite/bias"))]
    assert len(biases) == 8
    assert not any(values[path].any() for path in biases)


def test_gfgps_skip_pools_nothing():
    _, shapes, features, _ = tracing.trace({"backbone": "vgg11_bow", "pool": "none"}, 16)
    assert features == (2, 16, 16, 4096)
    assert not any("pool" in path or "bn" in path for path in shapes)


def test_names_of_gfgps_layers_without_batch_norm():
    names = get_backbone({"backbone": "vgg11_bow"}).torch_names.names
    places = {"features/conv5_2/conv": 18, "features/conv6/conv": 20, "classifier/fc2": 2}
    for place, number in places.items():
        for pattern, replacement in names:
            place = re.sub(pattern, replacement, place)
        assert place.rpartition(".")[2] == str(number)


def test_classifier_drops_in_training_alone():
    x = jax.random.normal(jax.random.key(0), (2, 32))
    classifier = MultilayerClassifier(num_classes=3, hidden=(64, 64), dropout=(0.0, 0.5, 0.5))
    variables = classifier.init(jax.random.key(1), x, False)

    def logits(seed, train):
        return classifier.apply(variables, x, train, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(logits(0, False), logits(1, False))
    assert not np.array_equal(logits(0, True), logits(1, True))


def test_refusals():
    with pytest.raises(UsageError, match="vgg12"):
        create_model({"backbone": "vgg12", "num_classes": 10})
    with pytest.raises(UsageError, match="no option 'hidden'"):
        create_model({"backbone": "vgg16_mod", "num_classes": 10, "hidden": (1,)})
    with pytest.raises(UsageError, match="'hidden' of backbone"):
        create_model({"backbone": "vgg16", "num_classes": 10, "hidden": (0,)})
    with pytest.raises(UsageError, match="'flat'"):
        create_model({"backbone": "vgg16_mod", "num_classes": 10, "representation": "flat"})


@pytest.mark.parametrize(
    "config",
    [{"backbone": "vgg11"}, {"backbone": "vgg11_gfgp", "pool": "gfgp", "attention": "gsop"}],
)
def test_types(config):
    tracing.check_types(config)
