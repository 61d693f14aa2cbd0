"""Vision transformers: what representations get of them, and what is refused. Logits: golden."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sop.errors import UsageError
from sop.models import create_model, get_backbone, resolve
from sop.models.backbone import Backbone
from sop.models.catalogue import cost
from sop.models.features import features, pyramid
from sop.models.parts import make_parts
from sop.models.vit import ClassToken, resample_positions, vit
from sop.torch_weights.engine import conversion, to_state_dict
from sop.training.pretrained import merge

SMALL = Backbone(
    vit, image_size=32, representation="class_token", own={"class_token": ClassToken}, reduction=8
)
SIZES = {"width": 24, "depth": 3, "heads": 2, "patch": 8}
IMAGES = jax.random.normal(jax.random.key(1), (2, 32, 24, 3))


def make(dtype=jnp.float32, remat=False, representation=None, **options):
    config = {"backbone": "small", "num_classes": 5, "representation": representation}
    return vit(make_parts(config, SMALL, dtype, remat=remat), **SIZES, **options)


def initial(model):
    return jax.jit(lambda: model.init(jax.random.key(0), IMAGES, train=False))()


@pytest.fixture(scope="module")
def variables():
    return initial(make())


def test_representations_get_the_tokens_of_the_patches(variables):
    """In their places: what the class token's network puts out behind that token."""
    tokens = features(make(), variables, IMAGES).stages["features"]
    assert tokens.shape == (2, 1 + 4 * 3, 24)
    found = features(make(representation="gavp"), variables, IMAGES)
    np.testing.assert_array_equal(found.stages["features"].reshape(2, 12, 24), tokens[:, 1:])
    np.testing.assert_allclose(found.representation, tokens[:, 1:].mean(1), atol=1e-6)


def test_a_second_order_head_learns_from_tokens():
    model = make(representation="mpncov")
    variables = initial(model)

    def loss(params):
        everything = {**variables, "params": params}
        logits, _ = model.apply(everything, IMAGES, train=True, mutable=["batch_stats"])
        return jnp.square(logits).sum()

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    assert all(bool(jnp.isfinite(each).all()) for each in jax.tree.leaves(gradients))
    assert float(jnp.abs(gradients["features"]["patch_embed"]["proj"]["kernel"]).max()) > 0


def test_rematerialised_encoders_are_the_same(variables):
    def gradient(remat):
        model = make(remat=remat)
        loss = jax.grad(lambda v: jnp.square(model.apply(v, IMAGES, train=False)).sum())
        return jax.jit(loss)(variables)

    pairs = map(jax.tree.leaves, (gradient(False), gradient(True)))
    for one, other in zip(*pairs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(one).max()) + 1e-9)


def test_branches_are_left_out_in_training(variables):
    """At rate 1 the last encoder gives on what it got; in evaluation nothing changes."""
    model, rngs = make(stochastic_depth=1.0), {"dropout": jax.random.key(2)}
    assert model.features.rates == (0.0, 0.5, 1.0)
    plain = make().apply(variables, IMAGES, train=False)
    np.testing.assert_array_equal(model.apply(variables, IMAGES, train=False), plain)
    _, found = model.apply(
        variables, IMAGES, True, rngs=rngs, capture_intermediates=True, mutable="intermediates"
    )
    inner = found["intermediates"]["features"]
    tokens = {name: inner[name]["__call__"][0] for name in inner if name.startswith("blocks")}
    np.testing.assert_array_equal(tokens["blocks_2"], tokens["blocks_1"])
    assert not np.allclose(tokens["blocks_1"], tokens["blocks_0"])


def test_half_precision_is_near(variables):
    exact = make().apply(variables, IMAGES, train=False)
    half = make(jnp.bfloat16).apply(variables, IMAGES, train=False)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, exact, atol=0.05 * float(jnp.abs(exact).max()))


def test_what_it_costs():
    assert cost({"backbone": "vit_tiny_patch16", "num_classes": 1000})[1:] == (
        5717416,
        1253683200,
        16,
        192,
    )
    found = pyramid({"backbone": "vit_tiny_patch16", "num_classes": 10, "representation": "gavp"})
    assert found == {"features": (16, 192)}


@pytest.mark.parametrize("part", [{"attention": "se"}, {"pool": "gfgp"}])
def test_parts_that_have_no_place_are_refused(part):
    with pytest.raises(UsageError, match=r"leave out config\.model\.attention"):
        create_model({"backbone": "vit_tiny_patch16", "num_classes": 10, **part})


@pytest.mark.parametrize("size", [(30, 32), (0, 32)])
def test_images_that_patches_do_not_tile_are_refused(variables, size):
    with pytest.raises(UsageError, match="must be multiples of 8"):
        make().apply(variables, jnp.zeros((1, *size, 3)), train=False)


@pytest.mark.parametrize("name", ["mgcrp", "moment_probing"])
def test_heads_of_transformers_get_the_class_token_too(name):
    """Their classifier is one of it and one of the words; without it they pool the words alone."""
    config = {"backbone": "vit_tiny_patch16", "num_classes": 10, "representation": name}
    images = jnp.zeros((1, 32, 32, 3))

    def width(config):
        model = create_model(config)
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
        return shapes["params"]["classifier"]["kernel"].shape[0], model.features.keeps_class_token

    pooled = {"mgcrp": 6 * 14**2, "moment_probing": 3 * 31**2}[name]
    assert width(config) == (192 + pooled, True)
    config["representation"] = {"name": name, "class_token": False}
    assert width(config) == ({"mgcrp": 0, "moment_probing": 192}[name] + pooled, False)
    assert resolve(config)["representation"]["class_token"] is False


@pytest.mark.parametrize("side", [4, 5, 8, 12, 14])
def test_positions_are_resampled_as_timm_does(side):
    with np.load(Path(__file__).parents[1] / "golden/positions/timm.npz") as golden:
        found = resample_positions(golden["embeddings"], (1, 1 + side**2, 5))
        np.testing.assert_allclose(found, golden[f"to_{side}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("counts", [(4, 12), (12, 4)])
def test_positions_of_images_that_are_not_square_are_refused(counts):
    with pytest.raises(UsageError, match="give square images, or weights of this size"):
        resample_positions(np.zeros((1, 1 + counts[0], 2)), (1, 1 + counts[1], 2))


def test_weights_of_another_image_size_are_read_as_they_are_and_start_a_run():
    """Logits are those of the same network, with the positions resampled."""
    config = {"backbone": "vit_tiny_patch16", "num_classes": 3}
    init = create_model(config).init

    def zeros(size):
        images = jnp.zeros((1, size, size, 3))
        shapes = jax.eval_shape(lambda: init(jax.random.key(0), images, train=False))
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)

    large, small = zeros(64), zeros(32)
    positions = np.random.default_rng(0).standard_normal((1, 17, 192)).astype(np.float32)
    large["params"]["features"]["pos_embed"] = positions
    read = conversion(to_state_dict(large, config), config).variables
    np.testing.assert_array_equal(read["params"]["features"]["pos_embed"], positions)
    said = []
    merged = merge(small, read, "runs/a", said.append, get_backbone(config).resampled)
    np.testing.assert_array_equal(
        merged["params"]["features"]["pos_embed"], resample_positions(positions, (1, 5, 192))
    )
    assert said == ["Weights from runs/a: pos_embed is resampled from (1, 17, 192) to (1, 5, 192)."]
    with pytest.raises(UsageError, match="pos_embed has shape"):
        merge(small, read, "runs/a")
