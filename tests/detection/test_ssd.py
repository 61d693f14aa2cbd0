"""SSD as a module: shapes, what it refuses, and objects that break detectors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sop.detection import create_detector
from sop.errors import UsageError
from tests.detection.small import OBJECTS, targets_of

SMALL = {
    "name": "ssd",
    "extras": ((8, 16, 2),),
    "ratios": ((2.0,),) * 3,
    "detections": 20,
    "candidates": 30,
}
CONFIG = {"backbone": "resnet8_cifar", "num_classes": 3, "detector": SMALL}


@pytest.fixture(scope="module")
def small():
    detector = create_detector(CONFIG)
    images = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
    variables = jax.jit(detector.init)(jax.random.key(0), images)
    return detector, variables, images


@pytest.fixture(scope="module")
def gradient(small):
    """(params, targets) → the losses' sum and the losses, their gradient."""
    detector, variables, images = small

    @jax.jit
    def run(params, targets):
        def loss(params):
            given = {**variables, "params": params}
            losses, _ = detector.apply(given, images, targets, train=True, mutable=["batch_stats"])
            return sum(losses.values()), losses

        return jax.value_and_grad(loss, has_aux=True)(params)

    return run


@pytest.mark.parametrize("name", OBJECTS)
def test_losses_and_gradients_are_finite(name, small, gradient):
    (total, losses), grads = gradient(small[1]["params"], targets_of(*OBJECTS[name]))
    for leaf in jax.tree.leaves((losses, grads)):
        assert jnp.isfinite(leaf).all()
    answered = name in ("one", "partly outside", "tiny")
    # Without objects there are no positives, hence no negatives that go with them.
    assert (total > 0) == answered


def test_a_crowd_is_left_out(small, gradient):
    targets = targets_of([[4, 4, 20, 20]], True, crowd=True)
    (total, _), _ = gradient(small[1]["params"], targets)
    assert total == 0


def test_detections(small):
    """By falling score, in the image, at most so many; padding of an image is cut off."""
    detector, variables, images = small
    apply = jax.jit(detector.apply)
    found = apply(variables, images)
    scores, valid = found["scores"][0], found["valid"][0]
    assert found["boxes"].shape == (1, 20, 4) and found["labels"].dtype == jnp.int32
    assert valid.any() and (jnp.diff(scores) <= 0).all() and (scores[valid] > 0.02).all()
    assert (found["boxes"] >= 0).all() and (found["boxes"] <= 32).all()
    found = apply(variables, images, sizes=jnp.array([[10.0, 20.0]]))
    assert found["boxes"][..., 2].max() <= 20 and found["boxes"][..., 3].max() <= 10


def test_what_is_learned_is_found(small, gradient):
    """Fifty steps on one image: its object is the first detection."""
    detector, variables, images = small
    truth = [[4.0, 6.0, 22.0, 24.0]]
    params = variables["params"]

    @jax.jit
    def step(params, grads):
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)

    for _ in range(50):
        params = step(params, gradient(params, targets_of(truth, True))[1])
    # With the statistics of the batch, as in these steps.
    apply = jax.jit(partial(detector.apply, train=True, mutable=["batch_stats"]))
    found, _ = apply({**variables, "params": params}, images)
    np.testing.assert_allclose(found["boxes"][0, 0], truth[0], atol=1.5)
    assert found["labels"][0, 0] == 0 and found["scores"][0, 0] > 0.5


def test_half_precision_says_float32():
    detector = create_detector(CONFIG, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.bfloat16)
    variables = jax.eval_shape(lambda x: detector.init(jax.random.key(0), x), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    found = jax.eval_shape(detector.apply, variables, images)
    assert found["boxes"].dtype == found["scores"].dtype == jnp.float32


def test_published_size():
    """SSD300 on MobileNet: six maps, 4 or 6 anchors at each position; CGD goes into the blocks."""
    config = {"backbone": "mobilenet", "num_classes": 20, "attention": "cgd", "detector": "ssd"}
    detector = create_detector(config)
    images = jax.ShapeDtypeStruct((1, 300, 300, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: detector.init(jax.random.key(0), x), images)
    params = variables["params"]
    widths = [params[f"boxes{i}"]["kernel"].shape[2:] for i in range(6)]
    assert widths == [(512, 16), (1024, 24), (512, 24), (256, 24), (256, 16), (256, 16)]
    assert params["classes0"]["bias"].shape == (4 * 21,)
    assert "attention" in str(params["features"]["layers_3"].keys())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detector": "ssf"}, "Did you mean 'ssd'"),
        ({"detector": {"name": "ssd", "overlpa": 0.4}}, "overlpa"),
        ({"detector": {**SMALL, "overlap": "much"}}, "overlap"),
        ({"representation": "mpncov"}, "representation"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(UsageError, match=message):
        create_detector({**CONFIG, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratios": ((2.0,),)}, "ratios is for 1 maps, SSD has 3"),
        ({"base_levels": 9}, "base_levels"),
        ({"extras": ((4, 4, 2),) * 3 + ((4, 4, 1),) * 2, "ratios": ()}, "No position is left"),
    ],
)
def test_refusals_when_traced(changes, message):
    detector = create_detector({**CONFIG, "detector": {**SMALL, **changes}})
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    with pytest.raises(UsageError, match=message):
        jax.eval_shape(lambda x: detector.init(jax.random.key(0), x), images)


def test_rematerialised_gradient_is_the_same(small):
    _, variables, images = small
    truth = targets_of(*OBJECTS["one"])

    def gradient(remat):
        detector = create_detector(CONFIG, remat=remat)

        def loss(params):
            given = {**variables, "params": params}
            losses, new = detector.apply(given, images, truth, train=True, mutable=["batch_stats"])
            return sum(losses.values()), new

        program = jax.jit(jax.grad(loss, has_aux=True)).trace(variables["params"])
        # The blocks of the backbone are computed again.
        assert ("remat" in str(program.jaxpr)) == remat
        return program.lower().compile()(variables["params"])

    def near(found, wanted):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))

    jax.tree.map(near, gradient(True), gradient(False))
