"""ConvNeXt: what stands in it, and what is refused. Logits: golden."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sop.errors import UsageError
from sop.models import create_model
from sop.models.backbone import Backbone
from sop.models.catalogue import cost
from sop.models.convnext import convnext
from sop.models.features import features, pyramid
from sop.models.parts import make_parts

SMALL = Backbone(convnext, image_size=32, reduction=8)
IMAGES = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))


def make(dtype="float32", **parts):
    config = {"backbone": "small", "num_classes": 5, **parts}
    whole = make_parts(config, SMALL, jnp.dtype(dtype))
    return convnext(whole, stage_sizes=(1, 2, 1), widths=(8, 16, 32))


@pytest.mark.parametrize(
    "parts", [{}, {"representation": "mpncov"}, {"attention": "se"}, {"attention": "cgd"}]
)
def test_it_takes_what_a_config_puts_in(parts):
    model = make(**parts)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES, train=False))
    stages = jax.eval_shape(lambda v: features(model, v, IMAGES), variables).stages
    assert {name: x.shape for name, x in stages.items()} == {
        "stage0": (2, 8, 8, 8),
        "stage1": (2, 4, 4, 16),
        "stage2": (2, 2, 2, 32),
    }
    assert ("norm" in variables["params"]["classifier"]) == ("representation" not in parts)
    inner = variables["params"]["features"]["stage1_1"]
    assert ("attention" in inner) == ("attention" in parts)


def test_half_precision_is_near():
    @jax.jit
    def both():
        variables = make().init(jax.random.key(0), IMAGES, train=False)
        return [make(each).apply(variables, IMAGES, False) for each in ("float32", "bfloat16")]

    exact, half = both()
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, exact, atol=0.05 * float(jnp.abs(exact).max()))


def test_what_it_costs():
    found = cost({"backbone": "convnext_tiny", "num_classes": 1000})
    assert found[1:] == (28589128, 4455531264, 32, 768)
    assert pyramid({"backbone": "convnext_tiny", "num_classes": 10})["stage1"] == (8, 192)


def test_local_pooling_is_refused():
    with pytest.raises(UsageError, match=r"leave out config\.model\.pool"):
        create_model({"backbone": "convnext_tiny", "num_classes": 10, "pool": "gfgp"})
