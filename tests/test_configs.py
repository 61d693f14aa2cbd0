"""Every experiment in configs/: it can be built, has the published size, and can take its steps."""

import json
import math
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import (
    cifar10,
    cifar100,
    detection,
    digit_scenes,
    digits,
    fine_grained,
    imagenet,
    mnist_5k,
    textures,
    typefaces,
)
from sop.config import check, stage_configs
from sop.config.command_line import load
from sop.config.validation import flatten
from sop.data import transforms
from sop.data.normalization import normalize
from sop.data.scene_examples import Scenes
from sop.data.scenes import parse_scenes
from sop.detection import learned_mask_size
from sop.models import create_model
from sop.models.lookup import is_detector
from sop.training.optimizer import make_optimizer, make_schedule, matches_any
from sop.training.programs import evaluation_program, training_program
from sop.training.state import init_state, init_variables
from sop.training.step import data_parallel, make_eval_step, make_mesh, make_train_step

FOLDER = Path(digits.__file__).parent
FILES = {
    file.__name__.rpartition(".")[2]: file
    for file in (digits, typefaces, textures, mnist_5k, imagenet, cifar100, cifar10, fine_grained)
}
NAMES = [f"{file}.py:{name}" for file in FILES for name in FILES[file].EXPERIMENTS]
NATIVE = {
    "cifar100": (32, 32),
    "cifar10": (32, 32),
    "digits": (8, 8),
    "typefaces": (32, 32),
    "textures": (32, 32),
    "mnist_5k": (28, 28),
}
DETECTORS = [  # see tests/detection/test_training.py
    f"{file.__name__.rpartition('.')[2]}.py:{name}"
    for file in (digit_scenes, detection)
    for name in file.EXPERIMENTS
]
SMALL = [name for name in NAMES if name.startswith(tuple(NATIVE))]
CIFAR = [name for name in NAMES if name.startswith("cifar")]

# Config → the golden network whose parameter count it has.
GOLDEN = {
    "imagenet.py:convnext_tiny": "timm_convnext_tiny",
    "imagenet.py:vit_small_deit": "timm_vit_small_patch16",
    "imagenet.py:vit_tiny_deit": "timm_vit_tiny_patch16",
    "imagenet.py:densenet169_average": "gfgp_densenet169_avg",
    "imagenet.py:densenet169_gfgp": "gfgp_densenet169_max_ent",
    "imagenet.py:mobilenet070_cgd": "cgd_mobilenet_070",
    "imagenet.py:mobilenet_cgd": "cgd_mobilenet_100",
    "imagenet.py:mobilenet_gavp": "mobilenet_100",
    "imagenet.py:resnet101_mpncov": "fastmpn_mpncovresnet101",
    "imagenet.py:resnet101_mpncov_tf": "fastmpn_mpncovresnet101",
    "imagenet.py:resnet50_cgd": "cgd_resnet50",
    "imagenet.py:resnet50_gavp": "fastmpn_resnet50_gavp",
    "imagenet.py:resnet50_gavp_cgd": "fastmpn_resnet50_gavp",
    "imagenet.py:resnet50_gfgp": "gfgp_resnet50_max_ent",
    "imagenet.py:resnet50_gsop1": "gsop1_resnet50_channel",
    "imagenet.py:resnet50_gsop2": "gsop2_resnet50_channel",
    "imagenet.py:resnet50_mpncov": "mpncov_resnet50",
    "imagenet.py:resnet50_mpncov_tf": "mpncov_resnet50",
    "imagenet.py:resnet50_skip": "gfgp_resnet50_skip",
    "imagenet.py:resnext50_gfgp": "gfgp_resnext50_32x4d_max_ent",
    "imagenet.py:squeezenet11_cgd": "cgd_squeezenet1_1",
    "imagenet.py:squeezenet11_gavp": "squeezenet1_1",
    "imagenet.py:vgg16_gfgp": "gfgp_vgg16_max_ent",
    "imagenet.py:vgg16_max": "gfgp_vgg16_max",
    "imagenet.py:vgg16_mpncov": "fastmpn_vgg16_bn_mpncov",
    "imagenet.py:vgg16mod_gfgp": "gfgp_vgg16_mod_max_ent",
    "imagenet.py:vgg16mod_max": "gfgp_vgg16_mod_max",
}

# The networks of the typefaces on other data.
TYPEFACES = [name for name in NAMES if name.startswith(("textures", "mnist_5k"))]
# Deep networks, and those that differ from another one by the number of classes alone.
SLOW = {
    *(name for name in NAMES if any(w in name for w in ("densenet", "resnext", "101"))),
    *(name for name in NAMES if name.startswith(("fine_grained.py:a", "fine_grained.py:ca"))),
    *(name for name in NAMES if any(w in name for w in ("vit_small", "vit_base", "convnext"))),
    *(f"imagenet.py:{name}" for name in ("vit_tiny_deit", "resnet50_se", "resnet50_cbam")),
    "imagenet.py:resnet50_eca",
    *CIFAR,
    *TYPEFACES,
} - {"cifar100.py:preresnet164_gavp"}
UNRUN = {*CIFAR, *TYPEFACES}
# XLA's options for compiling 164 layers in seconds rather than a minute.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
TRACED = [pytest.param(name, marks=pytest.mark.heavy) if name in SLOW else name for name in NAMES]


def config_of(name):
    return load(f"{FOLDER}/{name}")


def image_size(config, training):
    """(H, W) of what the transforms make of the data set's images, and the number of views."""
    text = config.input.train_transforms if training else config.input.eval_transforms
    pipeline = transforms.parse(text, training=training)
    native = NATIVE.get(config.input.dataset.partition("/")[0])
    return pipeline.output_size(native), pipeline.num_views


def buckets(config, training):
    """What batches have of each example, of each size of images."""
    if is_detector(config.model):
        options = config.input
        text = options.train_transforms if training else options.eval_transforms
        pipeline = parse_scenes(text, training=training)
        mask_size = learned_mask_size(config.model) if training else None
        how = {"seed": 0, "skip_bad": False, "replace_bad": training, "mask_size": mask_size}
        found = Scenes([], pipeline, **how, capacity=options.max_objects).buckets
    else:
        size, views = image_size(config, training)
        shape = (*(() if views is None else (views,)), *size, 3)
        found = [{"image": (shape, np.uint8), "label": ((), np.int32)}]
    return found if training else [{**rows, "mask": ((), np.bool_)} for rows in found]


SHAPES = {}


def variable_shapes(config):
    """Of the config's network, traced once for all stages and experiments that have it."""
    size, _ = image_size(config, training=True)
    network = config.model.to_json(sort_keys=True), size
    if network not in SHAPES:
        start = partial(init_variables, create_model(config.model), 0, (*size, 3))
        SHAPES[network] = jax.eval_shape(start)
    return SHAPES[network]


def steps(config):
    """The state's shapes, a function that makes it, and both steps on one device, as for a run."""
    model = create_model(config.model, dtype=jnp.dtype(config.dtype))
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, config.num_epochs, 10)
    size, _ = image_size(config, training=True)
    start = partial(init_variables, model, config.seed, (*size, 3))
    variables = variable_shapes(config)
    tx = make_optimizer(config.optimizer, schedule, variables["params"])
    prepare = partial(normalize, name=config.input.normalization)
    train_step = make_train_step(
        model,
        tx,
        normalize=prepare,
        frozen_batch_norm=matches_any(config.optimizer.frozen),
    )
    mesh = make_mesh(jax.devices()[:1])
    eval_step = make_eval_step(model, normalize=prepare)
    return (
        jax.eval_shape(partial(init_state, tx=tx), variables),
        lambda: init_state(start(), tx),
        data_parallel(train_step, mesh),
        data_parallel(eval_step, mesh),
    )


def parameters(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", NAMES)
def test_config_is_one_that_runs_take(name):
    config = config_of(name)
    check(config)
    for stage in stage_configs(config):
        assert image_size(stage, training=True)[0] == image_size(stage, training=False)[0]
        if stage.input.test_transforms is not None:
            transforms.parse(stage.input.test_transforms, training=False)
        make_schedule(stage.schedule, stage.optimizer.learning_rate, stage.num_epochs, 10)
    create_model(config.model)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_parameter_count_is_the_originals(name):
    folder = Path(__file__).parent / "golden" / "networks"
    golden = json.loads((folder / f"{GOLDEN[name]}.json").read_text())
    config = config_of(name)
    config.model.num_classes = np.load(folder / f"{GOLDEN[name]}.logits.npy").shape[1]
    assert parameters(variable_shapes(config)["params"]) == golden["parameters"]


@pytest.mark.parametrize("name", TRACED)
def test_steps_at_full_size(name):
    for config in stage_configs(config_of(name)):
        state, _, train_step, eval_step = steps(config)
        size, _ = image_size(config, training=True)
        batch = {
            "image": jax.ShapeDtypeStruct((config.batch_size, *size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
        }
        new_state, metrics = jax.eval_shape(train_step, state, batch)
        assert jax.tree.map(jnp.shape, new_state) == jax.tree.map(jnp.shape, state)
        assert metrics["loss"].shape == ()
        size, views = image_size(config, training=False)
        views = () if views is None else (views,)
        count = config.eval_batch_size
        batch = {
            "image": jax.ShapeDtypeStruct((count, *views, *size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((count,), jnp.int32),
            "mask": jax.ShapeDtypeStruct((count,), bool),
        }
        sums = jax.eval_shape(eval_step, state.variables, batch)
        assert {key: value.shape for key, value in sums.items()} == dict.fromkeys(sums, ())


@pytest.mark.heavy
@pytest.mark.parametrize("name", [*NAMES, *DETECTORS])
def test_steps_lower_for_cuda(name):
    """None is needed; custom calls are those that docs/accelerators.md lists."""
    page = (Path(__file__).parents[1] / "docs/accelerators.md").read_text()
    mesh = make_mesh(jax.devices()[:1])
    for config in stage_configs(config_of(name)):
        programs = [training_program(config, mesh, rows) for rows in buckets(config, True)]
        programs += [evaluation_program(config, mesh, rows) for rows in buckets(config, False)]
        for program in programs:
            text = program.lower(lowering_platforms=("cuda",)).as_text()
            calls = set(re.findall(r"custom_call @(\w+)", text))
            assert all(f"`{call}`" in page for call in calls), calls


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.heavy if name in UNRUN else ()) for name in SMALL],
)
def test_two_real_steps(name):
    config = stage_configs(config_of(name))[-1]
    _, start, train_step, _ = steps(config)
    state = jax.jit(start).lower().compile(QUICK)()
    random = np.random.default_rng(0)
    batch = {
        "image": random.integers(0, 256, (4, *image_size(config, training=True)[0], 3), np.uint8),
        "label": random.integers(0, config.model.num_classes, 4, np.int32),
    }
    train_step = train_step.lower(state, batch).compile(QUICK)
    before = state
    for step in (1, 2):
        state, metrics = train_step(state, batch)
        assert int(state.step) == step
        assert all(np.isfinite(value) for value in metrics.values())
    moved = jax.tree.map(lambda old, new: bool((old != new).any()), before.params, state.params)
    assert all(jax.tree.leaves(moved))


def test_readme_lists_every_experiment():
    text = (FOLDER / "README.md").read_text()
    listed = [row.split("`")[1] for row in text.splitlines() if row.startswith("| `")]
    assert listed == [*NAMES, *DETECTORS]


# Config → what its original's code does, and other recipes do not.
OWN = {
    "cifar100.py:preresnet164_mpncov": {
        "input.normalization": "cifar100_tf",
        "model.shortcut": "activation",
        "model.initialization": "glorot",
        "model.representation.initialization": "lecun",
    },
    "imagenet.py:resnet101_mpncov_tf": {
        "model.initialization": "lecun",
        "model.representation.initialization": "lecun",
        "schedule.warmup_epochs": 5.0,
        "schedule.warmup_learning_rate": 0.0,
        "input.eval_transforms": "resized_center_crop(224, 0.875, 'bicubic')",
        "sync_representation": False,
    },
    "imagenet.py:vit_base_moment_probing": {
        "optimizer.frozen": ("^features/",),
        "optimizer.learning_rate": 1e-4,
        "ema_decay": 0.99992,
        "model.stochastic_depth": 0.1,
    },
    "imagenet.py:convnext_tiny": {"batch_size": 4096, "optimizer.learning_rate": 4e-3},
    "imagenet.py:resnet50_mpncov": {"sync_representation": True},
    "imagenet.py:resnet50_gsop2": {"sync_representation": False},
    "cifar10.py:wrn28_10_cgd": {
        "model.dropout": 0.3,
        "num_epochs": 200,
        "schedule.boundaries": (60, 120, 160),
        "schedule.factor": 0.2,
        "optimizer.weight_decay": 5e-4,
    },
    "cifar100.py:preresnet110_cgd": {
        "num_epochs": 164,
        "schedule.boundaries": (81, 122),
        "optimizer.weight_decay": 1e-4,
        "input.normalization": "cifar10",
    },
    "fine_grained.py:cars_resnet50_mpncov": {
        "optimizer.weight_decay": 1e-4,
        "input.eval_transforms": "resize(448, 448) | center_crop(448)",
        "input.test_transforms": "resize(448, 448) | mirror_views(448)",
        "input.exif": "ignore",
    },
    "fine_grained.py:cub_vgg16_cbp": {"optimizer.keep_momentum": True, "batch_size": 10},
}


@pytest.mark.parametrize("name", OWN)
def test_recipe_is_that_of_the_code_that_published(name):
    flat = flatten(stage_configs(config_of(name))[-1])
    assert {key: flat[key] for key in OWN[name]} == OWN[name]
