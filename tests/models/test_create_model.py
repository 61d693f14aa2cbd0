"""What a config may say, what it means by default, and how it is refused."""

import dataclasses
import re
import sys
import types
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from sop.errors import UsageError
from sop.layers import MPNCOV
from sop.models import BACKBONES, create_model, resolve
from sop.models.parts import REPRESENTATIONS

SMALL = {"backbone": "resnet8_cifar", "num_classes": 3}
IMAGES = jnp.zeros((2, 16, 16, 3))


class Own(nn.Module):
    """Features of a user's own."""

    width: int = 4
    dtype: Any = None

    @nn.compact
    def __call__(self, images, train):
        return nn.Conv(self.width, (3, 3), 2, dtype=self.dtype, name="conv")(images)


OWN = dataclasses.replace(BACKBONES["resnet18"], image_size=16)


def variables_of(model, images=IMAGES):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


def shapes(config):
    return jax.tree.map(jnp.shape, variables_of(create_model(config)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"backbone": None}, "needs a backbone: one of 'resnet18'"),
        (
            {"backbone": "resnet51"},
            "no backbone 'resnet51'. Did you mean 'resnet50'? There are 'resnet18', ",
        ),
        ({"backbone": "resnet99999998_cifar"}, "depth of backbone 'resnet99999998_cifar' is 9999"),
        ({"backbone": "resnet99999999998_cifar"}, "no backbone 'resnet99999999998_cifar'"),
        ({"backbone": "wrn16_400_cifar"}, "widening of backbone 'wrn16_400_cifar' is 400 but"),
        ({"backbone": 50}, "backbone is 50 but must be a string"),
        ({"backbone": "resnet21_cifar"}, "depth 6n+2, not 21"),
        ({"backbone": "resnet21_cifar", "block": "bottleneck"}, "depth 9n+2, not 21"),
        ({"backbone": "wrn17_4_cifar"}, "depth 6n+4 (16, 28, 40, …), not 17"),
        (
            {"backbone": "wrn16_4_cifar", "dropout": 1.5},
            "'dropout' of backbone 'wrn16_4_cifar' is 1.5 but must be",
        ),
        ({"stage_size": 0}, "'stage_size' of backbone 'resnet8_cifar' is 0 but must be"),
        ({"num_classes": None}, "needs num_classes"),
        ({"num_classes": "ten"}, "num_classes is 'ten' but must be a whole number"),
        ({"num_classes": 0}, "num_classes is 0 but must be a whole number from 1 to"),
        (
            {"depth": 8},
            "no option 'depth' of backbone 'resnet8_cifar'; it takes 'block', ",
        ),
        ({"last_stride": 3}, "'last_stride' of backbone 'resnet8_cifar' is 3"),
        ({"attention": "senet"}, "no attention 'senet'; there are 'gsop', 'gsop_compact', 'cgd'"),
        (
            {"attention": {"name": "gsop", "with": 3}},
            "no option 'with' of attention 'gsop'; it takes 'dim', 'm",
        ),
        ({"attention": {"name": "gsop", "dim": "128"}}, "'dim' of attention 'gsop' is '128'"),
        ({"attention": {"name": "gsop", "manner": "both"}}, "'manner' of attention 'gsop' is"),
        ({"attention": {"name": "none", "dim": 8}}, "'none' takes no options; remove 'dim'"),
        ({"attention": {"dim": 8}}, "config.model.attention has options ('dim') but no name"),
        ({"attention": ""}, "no attention ''; there are 'gsop'"),
        ({"attention": ":"}, "no attention ':'; there are 'gsop'"),
        ({"attention": "a:b:c"}, "no attention 'a:b:c'; there are 'gsop'"),
        ({"attention": "os:getcwd"}, "'os:getcwd' is no Flax module; name a subclass of"),
        ({"attention": "flax.linen:Dense"}, "called with (inputs); it must be a module that is"),
        ({"attention": "flax.linen:BatchNorm"}, "called with (x, use_running_average, mask); it"),
        ({"pool": "sop.layers:GSoP"}, "has no field 'window'; a pool must have 'window', 'str"),
        ({"representation": "sop.models.network:Linear"}, "needs the option 'num_classes'."),
        ({"pool": {"name": "max_entropy", "lam": -1}}, "'lam' of pool 'max_entropy' is -1 but"),
        (
            {"representation": {"name": "mpncov", "reduction": 10**8}},
            "'reduction' of representation 'mpncov' is 100000000 but must be a whole number from 0",
        ),
        (
            {"representation": {"name": "mpncov", "num_iters": 10**5}},
            "'num_iters' of representation 'mpncov' is 100000 but must be a whole number from 1 to",
        ),
        ({"backbone": "os:getcwd"}, "backbone 'os:getcwd' is no Flax module; name a subclass of"),
        ({"backbone": "no_such:Net"}, "backbone 'no_such:Net' cannot be imported: No module"),
        ({"backbone": "sop.models.resnet:ResNet"}, "'sop.models.resnet:ResNet' needs the option"),
        ({"backbone": f"{__name__}:Own", "depth": 3}, "There is no option 'depth' of backbone 'te"),
        ({"backbone": f"{__name__}:Own", "width": "3"}, "'width' of backbone 'tests.models.test_c"),
        ({"backbone": f"{__name__}:Own", "attention": "cgd"}, "is a module of features, into wh"),
        ({"backbone": f"{__name__}:Own", "pool": "max"}, "leave out config.model.attention, conf"),
        ({"attention": 3}, "config.model.attention is 3; give a name or a dict"),
        (
            {"attention": {"name": "cgd", "after": "top"}},
            "attention.after is 'top' but must be 'conv' or 'branch'",
        ),
        ({"attention": {"name": "cgd", "blocks": "11 1 1"}}, "does not fit stages of (1, 1, 1)"),
        ({"attention": {"name": "cgd", "blocks": "1 2 0"}}, "knows the characters '0', '1'."),
        ({"attention": {"name": "cgd", "use_bias": 1}}, "'use_bias' of attention 'cgd' is 1"),
        ({"pool": "median"}, "no pool 'median'; there are 'max', 'average', 'skip'"),
        ({"pool": {"name": "max", "window": 3}}, "no option 'window' of pool 'max'"),
        ({"pool": {"name": "gfgp", "activation": "tanh"}}, "'activation' of pool 'gfgp' is 'tanh'"),
        (
            {"representation": "vlad"},
            "no representation 'vlad'; there are 'gavp', 'max', 'gem', 'mp",
        ),
        (
            {"representation": {"name": "max", "width": 3}},
            "no option 'width' of representation 'max'; it takes none",
        ),
        ({"representation": {"name": "mpncov", "num_iters": True}}, "'num_iters' of represent"),
        ({"representation": {"name": "mpncov", "num_iters": 0}}, "'num_iters' of represent"),
        ({"representation": {"name": "mpncov", "dropout": 1.5}}, "'dropout' of represent"),
        ({"norm": "layer_norm"}, "no norm 'layer_norm'; there are 'iter_norm', or 'package.module"),
        ({"norm": {"name": "iter_norm", "scale_init": 1}}, "no option 'scale_init' of norm 'iter"),
        ({"norm": "sop.layers:GSoP"}, "has no field 'scale_init'; a norm must have 'scale_init'."),
        ({"backbone": "vit_tiny_patch16", "norm": "iter_norm"}, "has no batch norm in whose place"),
        ({"backbone": "convnext_tiny", "norm": "iter_norm"}, "leave out config.model.norm."),
        ({"backbone": "vgg11", "norm": "iter_norm"}, "vgg11 has no batch norm in whose place"),
        ({"backbone": "squeezenet1_1", "norm": "iter_norm"}, "squeezenet1_1 has no batch norm in"),
        ({"backbone": f"{__name__}:Own", "norm": "iter_norm"}, "has no batch norm in whose place"),
        ({"representation": "no.such.module:Pool"}, "cannot be imported: No module named 'no'"),
    ],
)
def test_refused_by_a_sentence(changes, sentence):
    with pytest.raises(UsageError, match="(?i)" + re.escape(sentence)) as refusal:
        create_model(SMALL | changes)
    assert str(refusal.value).endswith(".")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "images", "sentence"),
    [
        ({}, (16, 16, 3), "takes images [batch, height, width, channels], not"),
        ({"pool": "max"}, (1, 3, 8, 3), "In resnet8_cifar on images of 3×8 pixels: "),
        (
            {"backbone": "resnet18", "pool": "gfgp"},
            (1, 29, 32, 3),
            "In resnet18 on images of 29×32 pixels: ",
        ),
        ({"representation": {"name": "mpncov", "vectorize": False}}, (1, 8, 8, 3), "one vector"),
        (
            {"attention": "sop.layers:MPNCOV"},
            (1, 8, 8, 3),
            "The attention MPNCOV makes (1, 136) of a map (1, 8, 8, 16); choose a module that",
        ),
        (
            {"attention": {"name": "gsop", "manner": "fusion_concat"}},
            (1, 8, 8, 3),
            "multiple of 64",
        ),
    ],
)
def test_refused_by_a_sentence_when_traced(changes, images, sentence):
    model = create_model(SMALL | changes)
    with pytest.raises(UsageError, match=re.escape(sentence)) as refusal:
        variables_of(model, jnp.zeros(images))
    assert "\n" not in str(refusal.value)


def test_an_error_of_another_kind_keeps_its_traceback():
    class Broken(nn.Module):
        def __call__(self, x, train):
            raise ValueError("a bug")

    model = create_model(SMALL).clone(representation=Broken())
    with pytest.raises(ValueError, match=r"^a bug"):
        variables_of(model)


def test_missing_and_none_mean_as_published():
    plain = shapes(SMALL)
    nothing = {"attention": None, "pool": {"name": None}, "representation": {}, "last_stride": None}
    assert shapes(SMALL | nothing) == plain
    assert shapes(SMALL | {"attention": "none", "pool": "skip", "representation": "gavp"}) == plain


def test_config_dict_with_placeholders():
    config = ConfigDict(SMALL)
    config.pool = ConfigDict({"name": placeholder(str)})
    config.representation = ConfigDict({"name": "mpncov", "reduction": 8})
    same = SMALL | {"representation": {"name": "mpncov", "reduction": 8}}
    assert shapes(config) == shapes(same)


def test_published_options_give_way_to_the_config():
    published = create_model(SMALL | {"representation": "mpncov"}).representation
    assert (published.reduction, published.num_iters, published.dropout) == (128, 5, 0.5)
    changed = {"name": "mpncov", "reduction": 0, "num_iters": 3}
    changed = create_model(SMALL | {"representation": changed}).representation
    assert (changed.reduction, changed.num_iters, changed.dropout) == (0, 3, 0.5)


def test_gsop_net2_has_three_iterations_and_no_attention_in_its_last_stage():
    model = create_model(
        {
            "backbone": "resnet50",
            "num_classes": 3,
            "attention": "gsop",
            "representation": "mpncov",
        }
    )
    assert isinstance(model.representation, MPNCOV)
    assert (model.representation.num_iters, model.representation.reduction) == (3, 256)
    features = variables_of(model, jnp.zeros((1, 32, 32, 3)))["params"]["features"]
    attended = [name for name, block in features.items() if "attention" in block]
    assert attended == ["layer1_2", "layer2_3", "layer3_5"]


def test_a_module_of_ones_own(monkeypatch):
    class Peak(nn.Module):
        power: int = 1

        def __call__(self, x, train):
            return x.max((1, 2)) ** self.power

    class Gate(nn.Module):
        dtype: object = None

        @nn.compact
        def __call__(self, x, train):
            return x * self.param("gate", nn.initializers.ones, (x.shape[-1],)).astype(x.dtype)

    module = types.ModuleType("of_my_own")
    module.Peak, module.Gate = Peak, Gate
    monkeypatch.setitem(sys.modules, "of_my_own", module)
    config = SMALL | {
        "attention": {"name": "of_my_own:Gate", "blocks": "last", "after": "conv"},
        "representation": {"name": "of_my_own:Peak", "power": 2},
    }
    model = create_model(config, dtype=jnp.bfloat16)
    assert model.representation.power == 2
    features = variables_of(model)["params"]["features"]
    assert features["layer3_0"]["attention"]["gate"].shape == (64,)
    with pytest.raises(UsageError, match=r"no option 'strength' of .*; it takes 'power'"):
        create_model(SMALL | {"representation": {"name": "of_my_own:Peak", "strength": 2}})


def test_compute_type_leaves_parameters_and_logits_float32():
    parts = {"attention": "cgd", "pool": "gfgp", "representation": {"name": "mpncov"}}
    model = create_model(SMALL | parts, dtype=jnp.bfloat16)
    variables = variables_of(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    run = partial(model.apply, train=True, mutable=["batch_stats"])
    logits, state = jax.eval_shape(run, variables, IMAGES, rngs={"dropout": jax.random.key(0)})
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
    features = jax.eval_shape(
        lambda: model.features.init_with_output(jax.random.key(0), IMAGES, False)[0]
    )
    assert features.dtype == jnp.bfloat16


def test_axis_name_reaches_every_batch_norm():
    """Halves of a batch with averaged statistics give what the whole batch gives."""
    config = SMALL | {
        "backbone": "preresnet8_cifar",
        "attention": {"name": "gsop", "dim": 8},
        "pool": "gfgp",
        "representation": {"name": "mpncov", "reduction": 8, "dropout": 0.0},
    }
    images = jax.random.normal(jax.random.key(1), (8, 8, 8, 3)) * jnp.repeat(
        jnp.array([1.0, 3.0]), 4
    ).reshape(8, 1, 1, 1)
    whole = create_model(config)
    halves = create_model(config, axis_name="batch")
    stream = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: stream.uniform(0.0, 0.3, leaf.shape).astype(np.float32),
        variables_of(whole, images),
    )

    def train(model, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    logits, state = jax.jit(partial(train, whole))(images)
    split = images.reshape(2, 4, *images.shape[1:])
    synced, synced_state = jax.jit(jax.vmap(partial(train, halves), axis_name="batch"))(split)
    np.testing.assert_allclose(synced.reshape(8, -1), logits, rtol=0, atol=1e-4)
    for ours, theirs in zip(jax.tree.leaves(synced_state), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(ours[0], theirs, rtol=1e-4, atol=1e-4)


def test_networks_are_hashable_and_equal_configs_make_equal_parts():
    model = create_model(SMALL | {"attention": "gsop"})
    assert hash(model) == hash(model)
    assert create_model(SMALL).representation == create_model(SMALL).representation


def test_the_representation_alone_may_take_statistics_over_devices():
    config = {"backbone": "resnet8_cifar", "num_classes": 2, "representation": "mpncov"}
    for axes in ({"axis_name": "batch"}, {"representation_axis": "batch"}):
        model = create_model(config, **axes)
        assert model.representation.axis_name == "batch"
        assert model.features.norm.keywords["axis_name"] == axes.get("axis_name")


def test_a_module_of_features_is_a_backbone():
    config = {"backbone": f"{__name__}:Own", "num_classes": 3, "width": 5, "representation": "bcnn"}
    model = create_model(config, dtype=jnp.bfloat16)
    found = variables_of(model)["params"]
    assert found["features"]["conv"]["kernel"].shape == (3, 3, 3, 5)
    assert found["classifier"]["kernel"].shape == (25, 3)
    assert model.features.dtype == jnp.bfloat16
    with pytest.raises(UsageError, match=r"leave out .* config\.remat, or name"):
        create_model(config, remat=True)


def test_a_backbone_of_a_users_own_takes_all_that_is_put_in():
    config = {"backbone": f"{__name__}:OWN", "num_classes": 3, "attention": "cgd", "last_stride": 1}
    model = create_model(config)
    assert model.image_size == 16
    own, known = (
        variables_of(each) for each in (model, create_model(config | {"backbone": "resnet18"}))
    )
    assert own == known


@pytest.mark.parametrize("name", ["mpncov", "gaussian", "dropcov", "deepbdc", "isice"])
def test_second_order_representations_get_the_networks_reduction(name):
    assert REPRESENTATIONS[name].published.reduces
    for backbone, width in (("resnet18", 256), ("resnet8_cifar", 128)):
        config = {"backbone": backbone, "num_classes": 3, "representation": name}
        assert create_model(config).representation.reduction == width
        config["representation"] = {"name": name, "reduction": 8}
        assert create_model(config).representation.reduction == 8


@pytest.mark.parametrize(
    "backbone",
    ["resnet18", "preresnet8_cifar", "wrn10_1_cifar", "mobilenet", "vgg11_bn"],
)
def test_another_norm_stands_in_the_place_of_each_batch_norm(backbone):
    """With its options, and the scales that the network starts from."""
    config = {"backbone": backbone, "num_classes": 3, "norm": {"name": "iter_norm"}}
    config["norm"]["group_size"] = 16
    zero = {"zero_init_residual": True} if backbone == "resnet18" else {}
    images = jnp.zeros((1, 32, 32, 3))
    plain, other = (
        jax.eval_shape(
            partial(create_model(each | zero).init, train=False), jax.random.key(0), images
        )
        for each in ({**config, "norm": None}, config)
    )
    assert plain["params"] == other["params"]
    flat = traverse_util.flatten_dict(other["batch_stats"], sep="/")
    statistics = traverse_util.flatten_dict(plain["batch_stats"], sep="/")
    assert {path.replace("/var", "/whitening") for path in statistics} == set(flat)
    assert all(leaf.shape[-1] <= 16 for path, leaf in flat.items() if path.endswith("whitening"))
    assert resolve(config)["norm"]["group_size"] == 16
    assert resolve(resolve(config)) == resolve(config)


def test_iterative_normalisation_of_a_network_decorrelates_in_training():
    config = SMALL | {"norm": {"name": "iter_norm", "num_iters": 7}}
    model, images = create_model(config), jax.random.normal(jax.random.key(1), (8, 8, 8, 3))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)
    apply = partial(model.apply, train=True, mutable=["batch_stats", "intermediates"])
    _, found = jax.jit(partial(apply, capture_intermediates=True))(variables, images)
    rows = found["intermediates"]["features"]["bn1"]["__call__"][0].reshape(-1, 16)
    np.testing.assert_allclose(rows.T @ rows / len(rows), np.eye(16), atol=0.2)
