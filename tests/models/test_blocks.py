"""What acts on every block of a network: rematerialisation and stochastic depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sop.models import create_model
from sop.training.state import init_variables
from tests.models.tracing import small_size

SMALL = {"backbone": "resnet8_cifar", "num_classes": 10}
IMAGES = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32)

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def gradient_of(model, images, key=1):
    """A function of the variables: gradients and new statistics of a made-up loss."""

    def loss(params, rest):
        logits, state = model.apply(
            {"params": params, **rest},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(key)},
        )
        return jnp.square(logits).sum(), state

    def gradient(variables):
        rest = {name: value for name, value in variables.items() if name != "params"}
        return jax.grad(loss, has_aux=True)(variables["params"], rest)

    return gradient


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet18", 8),
        ("preresnet8_cifar", 3),
        ("wrn10_1_cifar", 3),
        pytest.param("densenet121", 58, marks=pytest.mark.heavy),
        ("mobilenet", 13),
        ("squeezenet1_1", 8),
        ("vgg11_bn", 8),
        ("alexnet", 5),
        pytest.param("inception_v3", 11, marks=pytest.mark.heavy),
    ],
)
def test_inside_of_blocks_is_computed_again_with_the_same_parameters(name, blocks):
    size = small_size(name)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    config = {"backbone": name, "num_classes": 10}
    plain, again = (create_model(config, remat=remat) for remat in (False, True))
    shapes = jax.eval_shape(lambda: init_variables(plain, 0, (size, size, 3)))
    assert jax.eval_shape(lambda: init_variables(again, 0, (size, size, 3))) == shapes
    forward = jax.make_jaxpr(lambda v, x: again.apply(v, x, train=False))(shapes, images)
    found = [each for each in forward.jaxpr.eqns if each.primitive.name in ("checkpoint", "remat2")]
    assert len(found) == blocks


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"attention": "gsop"}, marks=pytest.mark.heavy),
        {"backbone": "wrn10_1_cifar", "dropout": 0.3, "pool": "gfgp"},
    ],
)
def test_gradients_are_the_same(changes):
    plain, again = (create_model(SMALL | changes, remat=remat) for remat in (False, True))
    variables = init_variables(plain, 0, IMAGES.shape[1:])
    compiled = [
        jax.jit(gradient_of(model, IMAGES)).lower(variables).compile(QUICK)
        for model in (plain, again)
    ]
    found = [gradient(variables) for gradient in compiled]
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found[0]))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * largest)
