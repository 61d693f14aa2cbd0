"""Networks traced, not computed: shapes, parameter counts, what stands where."""

import math

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from sop.errors import UsageError
from sop.models import create_model

ATTENTIONS = ("gsop", "gsop_compact", "cgd", "cgd_spatial", "cgd_toy")
POOLS = ("max", "average", "skip", "max_entropy", "gfgp")
# Name → width, of the channels and of what they are reduced to.
REPRESENTATIONS = {
    "gavp": lambda channels, reduced: channels,
    "mpncov": lambda channels, reduced: reduced * (reduced + 1) // 2,
    "gaussian": lambda channels, reduced: (reduced + 1) * (reduced + 2) // 2,
    "dropcov": lambda channels, reduced: reduced * (reduced + 1) // 2,
    "bcnn": lambda channels, reduced: channels**2,
    "compact_bilinear": lambda channels, reduced: 8192,
}


def small_size(backbone):
    """Height and width of images that are quick to trace and large enough for any options."""
    return {"alexnet": 63, "inception_v3": 75}.get(backbone, 32)


def parts(model, images, train):
    """Features and logits."""
    features = model.features(images, train)
    return features, model.classifier(model.representation(features, train), train)


def trace(config, size=None, num_classes=10):
    """Model, its variables' shapes by path, shapes of features and of the logits of training."""
    model = create_model({"num_classes": num_classes, **config})
    size = size or small_size(config["backbone"])
    images = jnp.zeros((2, size, size, 3))

    def run():
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        return model.init_with_output(rngs, images, True, method=parts)

    (features, logits), variables = jax.eval_shape(run)
    flat = traverse_util.flatten_dict(variables, sep="/")
    return model, {path: leaf.shape for path, leaf in flat.items()}, features.shape, logits.shape


def parameters(shapes):
    """Number of trainable scalars."""
    return sum(math.prod(shape) for path, shape in shapes.items() if path.startswith("params/"))


def places(shapes, name):
    """Paths in `features` of what holds a module called `name` with parameters."""
    paths = (path.split("/") for path in shapes if path.startswith("params/features/"))
    return {"/".join(path[2 : path.index(name)]) for path in paths if name in path}


def check_smallest(config, size):
    """`size` leaves one position of the feature map; one pixel less is refused."""
    model, _, features, _ = trace(config, size)
    assert features[1:3] == (1, 1)
    less = jnp.zeros((1, size - 1, size - 1, 3))
    with pytest.raises(UsageError, match=f"{config['backbone']} on images of {size - 1}×"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), less, train=False))


def check_types(config):
    """In bfloat16 features are bfloat16; parameters, statistics and logits stay float32.

    What evaluation starts from is what training takes.
    """
    model = create_model({"num_classes": 10, **config}, dtype=jnp.bfloat16)
    size = small_size(config["backbone"])
    images = jnp.zeros((1, size, size, 3))

    def run():
        keep = {"capture_intermediates": lambda module, _: module.name == "features"}
        evaluated, variables = model.init_with_output(jax.random.key(0), images, False, **keep)
        evaluated = evaluated, variables.pop("intermediates")
        trained, updates = model.apply(
            variables,
            images,
            True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
            **keep,
        )
        return variables, updates, evaluated, (trained, updates.pop("intermediates"))

    variables, updates, *outputs = jax.eval_shape(run)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert updates == {key: variables[key] for key in updates}
    for logits, inside in outputs:
        [features] = inside["features"]["__call__"]
        assert (features.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)


def check_representation(config, name):
    """The representation's width is that of the features; the classifier takes it."""
    _, shapes, features, logits = trace({**config, "representation": name})
    width = REPRESENTATIONS[name](features[-1], 256)
    assert logits == (2, 10)
    first = next(shapes[p] for p in shapes if p.startswith("params/classifier/") and "kernel" in p)
    assert first[0] == width


def initial(config, size, chosen):
    """Initial values of the parameters whose path holds one of `chosen`, by path."""
    model = create_model({"num_classes": 10, **config})
    images = jnp.zeros((1, size, size, 3))

    @jax.jit
    def start():
        variables = model.init(jax.random.key(0), images, train=False)
        flat = traverse_util.flatten_dict(variables["params"], sep="/")
        return {path: x for path, x in flat.items() if any(each in path for each in chosen)}

    return start()
