"""What a look inside finds, against what the layers put out and the methods' equations."""

from functools import partial

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from sop.config import get_config
from sop.models import create_model
from sop.training.state import init_variables
from sop.training.step import make_mesh, replicated
from sop.using import layers
from sop.using.inside import Look, default_layer, following_norm
from sop.using.run import Run

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), dtype=np.uint8)
PREDICTED = np.full(8, -1)


def fresh(**model):
    """A run that was never trained."""
    config = get_config()
    model = {"backbone": "resnet8_cifar", "num_classes": 5, "representation": "gavp"} | model
    config.model = ConfigDict(model)
    config.input.eval_transforms = ""
    network = create_model(config.model)
    variables = jax.jit(partial(init_variables, network, 1, IMAGES.shape[1:]))()
    # Statistics of no batch leave the maps as they are; these do not.
    shaken = jax.tree.map(lambda x: x + 0.1, variables["batch_stats"])
    mesh = make_mesh()
    variables = jax.device_put(variables | {"batch_stats": shaken}, replicated(mesh))
    return Run("fresh", config, network, variables, 0, 0.0, tuple("abcde"), mesh)


def found_in(run, layer=None, classes=PREDICTED):
    return Look(run, IMAGES.shape[1:], layer)(IMAGES, classes)


def at(run, *names):
    """What these layers put out."""
    forward = jax.jit(partial(layers.outputs, run.model, wanted=names))
    outputs = forward(run.variables, run.normalize(IMAGES))
    return [np.asarray(outputs[name]) for name in names]


def test_heat_and_grad_cam_are_those_of_their_equations():
    run = fresh()
    look = Look(run, IMAGES.shape[1:])
    assert (look.layer, look.normed) == ("features/layer3_0/conv1", "features/layer3_0/bn1")
    found = look(IMAGES, np.arange(8) % 5)
    norm, maps, logits = at(run, look.normed, "features", "classifier")
    np.testing.assert_allclose(found["heat"], np.maximum(norm, 0).mean(-1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["logits"], logits, rtol=1e-4, atol=1e-5)
    # With an average before a linear classifier, ∂logit/∂A_c = W_c / n at every position.
    kernel = np.asarray(run.variables["params"]["classifier"]["kernel"])
    cam = np.einsum("bhwc,cb->bhw", maps, kernel[:, np.arange(8) % 5]) / maps[0, ..., 0].size
    np.testing.assert_allclose(found["grad_cam"], np.maximum(cam, 0), rtol=1e-3, atol=1e-6)
    assert set(found) == {"logits", "heat", "grad_cam"}

    look = Look(run, IMAGES.shape[1:], "layer2")  # another layer, and the likeliest class
    found = look(IMAGES, PREDICTED)
    [block] = at(run, "features/layer2_0")
    np.testing.assert_allclose(found["heat"], np.abs(block).mean(-1), rtol=1e-4)
    again = look(IMAGES, logits.argmax(1))
    np.testing.assert_array_equal(again["grad_cam"], found["grad_cam"])
    assert found["grad_cam"].shape == (8, 6, 6)


def test_gsop_gfgp_and_mpncov_say_what_they_compute():
    run = fresh(
        attention={"name": "gsop", "manner": "fusion_avg", "dim": 8, "grid": 4, "blocks": "1 0 0"},
        pool="gfgp",
        representation={"name": "mpncov", "reduction": 6, "num_iters": 12},
    )
    found = found_in(run)
    gsop, pool = "features/layer1_0/attention", "features/layer2_0/pooling"
    wanted = ("features/layer1_0/bn2", gsop, f"{pool}/excite_norm", "representation/reduce_norm")
    x, y, excited, reduced = at(run, *wanted)
    weighted = np.maximum(x * found[f"position_weights/{gsop}"][..., None], 0)
    weighted += x * found[f"channel_weights/{gsop}"][:, None, None]
    np.testing.assert_allclose(y, weighted, rtol=1e-3, atol=1e-4)

    sigmoid = 1 / (1 + np.exp(-excited[:, 0, 0]))
    np.testing.assert_allclose(found[f"lambda/{pool}"], sigmoid, rtol=1e-4)
    share = found[f"pooling/{pool}"]
    assert share.shape == (8, 6, 6) and (share >= 0).all() and (share <= 1).all()

    maps = np.maximum(reduced, 0).reshape(8, -1, 6)
    expected = np.stack([np.cov(one.T, bias=True) for one in maps])
    np.testing.assert_allclose(found["covariance/representation"], expected, atol=1e-5)
    root = found["root/representation"]
    np.testing.assert_allclose(root @ root, expected, atol=1e-3 * expected.max())
    values, roots = found["spectrum/representation"], found["root_spectrum/representation"]
    assert (np.diff(values, axis=1) <= 0).all()
    np.testing.assert_allclose(roots[:, 0] ** 2, values[:, 0], rtol=1e-3)


@pytest.mark.parametrize("name", ["cgd", "cgd_spatial", "cgd_toy"])
def test_cgd_says_its_gates(name):
    run = fresh(attention={"name": name, "blocks": "1 0 0"})
    assert "intermediates" not in run.variables
    place = "features/layer1_0/attention"
    gate = found_in(run)[f"gates/{place}"]
    gate = gate[..., None] if name == "cgd_spatial" else gate[:, None, None]
    x, y = at(run, "features/layer1_0/conv1", place)
    np.testing.assert_allclose(y, x * (1 + gate), rtol=1e-4, atol=1e-5)


def test_attentions_of_the_field_say_their_gates():
    for name, shape in (("se", (8, 16)), ("simam", (8, 12, 12, 16))):
        run = fresh(attention={"name": name, "blocks": "1 0 0", "after": "branch"})
        place = "features/layer1_0/attention"
        gate = found_in(run)[f"weights/{place}"]
        assert gate.shape == shape
        x, y = at(run, "features/layer1_0/bn2", place)
        gate = gate[:, None, None] if name == "se" else gate
        np.testing.assert_allclose(y, x * gate, rtol=1e-4, atol=1e-5)


def test_compact_gsop_says_its_weights_and_soft_pooling_how_it_pooled():
    for lam, expected in ((0.0, 0.0), (1e6, 1.0)):
        run = fresh(
            attention={"name": "gsop_compact", "dim": 8, "blocks": "1 0 0"},
            pool={"name": "max_entropy", "lam": lam},
        )
        found = found_in(run)
        share = found["pooling/features/layer2_0/pooling"]
        np.testing.assert_allclose(share, expected, atol=1e-4)
    place = "features/layer1_0/attention"
    x, y = at(run, "features/layer1_0/bn2", place)
    weights = found[f"channel_weights/{place}"][:, None, None]
    np.testing.assert_allclose(y, x * weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "layer", "norm"),
    [
        ("resnet50", "features/layer4_1/conv1", "features/layer4_1/bn1"),
        ("preresnet20_cifar", "features/layer3_1/conv1", "features/layer3_1/bn2"),
        ("wrn16_2_cifar", "features/block3_layer_1/conv1", "features/block3_layer_1/bn2"),
        ("vgg11", "features/conv5_2/conv", None),
        ("mobilenet", "features", None),
    ],
)
def test_the_layer_of_the_published_figure_is_the_default(backbone, layer, norm):
    model = create_model({"backbone": backbone, "num_classes": 10, "attention": "cgd"})
    shape = (model.image_size, model.image_size, 3)
    shapes = jax.eval_shape(partial(init_variables, model, 0, shape))
    known = layers.trace(model, shapes, shape)
    assert default_layer(known) == layer and following_norm(layer, known) == norm
