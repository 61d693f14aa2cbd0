"""Inception-v3."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sop.errors import UsageError
from sop.models import create_model, get_backbone
from sop.models.inception import STAGES
from sop.torch_weights.names import canonical
from tests.models import tracing


@pytest.mark.parametrize(
    ("config", "classes", "count"),
    [
        # 27,161,264 of torchvision without the 3,326,696 of the auxiliary classifier.
        ({}, 1000, 23_834_568),
        ({"representation": "mpncov"}, 20, 22_968_308),
    ],
)
def test_parameter_count_is_the_originals(config, classes, count):
    _, shapes, _, _ = tracing.trace({"backbone": "inception_v3", **config}, num_classes=classes)
    assert tracing.parameters(shapes) == count


def test_table_1():
    _, _, features, _ = tracing.trace({"backbone": "inception_v3"}, 299)
    assert features == (2, 8, 8, 2048)


@pytest.mark.parametrize("name", tracing.REPRESENTATIONS)
def test_representations(name):
    tracing.check_representation({"backbone": "inception_v3"}, name)


@pytest.mark.parametrize("name", ["gsop", "cgd"])
def test_attention_stands_on_mixed_blocks(name):
    _, shapes, _, _ = tracing.trace({"backbone": "inception_v3", "attention": name}, 96)
    last = {"Mixed_5d", "Mixed_6e", "Mixed_7c"}
    every = {block[0] for stage in STAGES for block in stage}
    assert tracing.places(shapes, "attention") == (last if name == "gsop" else every)


@pytest.mark.parametrize(("name", "after"), [("gsop", "conv"), ("cgd", "branch")])
def test_another_place_for_attention_is_refused(name, after):
    config = {"backbone": "inception_v3", "num_classes": 3}
    with pytest.raises(UsageError, match=f"attention.after is '{after}', but in inception_v3"):
        create_model(config | {"attention": {"name": name, "after": after}})


@pytest.mark.parametrize("name", ["skip", "gfgp"])
def test_pooling(name):
    _, shapes, features, _ = tracing.trace({"backbone": "inception_v3", "pool": name}, 299)
    assert features == (2, 8, 8, 2048)
    leaf = {"skip": "conv", "gfgp": "squeeze"}[name]
    for place in ("pool1", "pool2", "Mixed_6a/branch_pool", "Mixed_7a/branch_pool"):
        assert any(path.startswith(f"params/features/{place}/{leaf}") for path in shapes)


def test_smallest_images():
    tracing.check_smallest({"backbone": "inception_v3"}, 75)


def test_transform_input_brings_imagenet_normalisation_to_plus_minus_one():
    seen = {}

    def layer(*args, name, **kwargs):
        def first(x, train):
            seen.setdefault(name, x)
            raise StopIteration

        return first

    config = {"backbone": "inception_v3", "num_classes": 10, "transform_input": True}
    features = create_model(config).features.clone(layer=layer)
    white = (1 - jnp.array([0.485, 0.456, 0.406])) / jnp.array([0.229, 0.224, 0.225])
    with pytest.raises(StopIteration):
        features.init(jax.random.key(0), jnp.broadcast_to(white, (1, 75, 75, 3)), False)
    np.testing.assert_allclose(seen["Conv2d_1a_3x3"], 1, atol=1e-6)


def test_initialisation():
    values = tracing.initial({"backbone": "inception_v3"}, 75, ("Conv2d_4a_3x3/conv", "classifier"))
    # A normal of deviation 0.1 cut off at ±0.2 keeps 0.88 of its deviation.
    kernel = values["features/Conv2d_4a_3x3/conv/kernel"]
    np.testing.assert_allclose(kernel.std(), 0.088, rtol=0.02)
    assert np.abs(kernel).max() <= 0.2
    # A new Linear of fast MPN-COV, U(±1/√2048), and no dropout before it.
    np.testing.assert_allclose(values["classifier/kernel"].std(), 0.0128, rtol=0.02)
    assert create_model({"backbone": "inception_v3", "num_classes": 10}).classifier.dropout == 0


def test_types():
    tracing.check_types({"backbone": "inception_v3", "transform_input": True})


def test_fast_mpn_cov_numbers_the_layers():
    names = [f"features.{number}.conv.weight" for number in (0, 5, 7, 17)]
    rules = get_backbone({"backbone": "inception_v3"}).torch_names
    places = ("Conv2d_1a_3x3", "Conv2d_4a_3x3", "Mixed_5b", "Mixed_7c")
    assert [canonical(name, rules) for name in names] == [
        f"{place}.conv.weight" for place in places
    ]
