"""What acts on every block of a network: rematerialisation and stochastic depth."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sop.models import create_model, residual
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
    variables = jax.jit(partial(init_variables, plain, 0, IMAGES.shape[1:]))()
    compiled = [
        jax.jit(gradient_of(model, IMAGES)).lower(variables).compile(QUICK)
        for model in (plain, again)
    ]
    found = [gradient(variables) for gradient in compiled]
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found[0]))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * largest)


@pytest.mark.parametrize("backbone", ["resnet8_cifar", "preresnet8_cifar", "wrn10_1_cifar"])
def test_stochastic_depth_leaves_out_branches_of_examples_in_training(backbone):
    config = SMALL | {"backbone": backbone}
    plain, random = (create_model(config | {"stochastic_depth": p}) for p in (0.0, 0.5))
    variables = jax.jit(partial(init_variables, plain, 0, IMAGES.shape[1:]))()
    same = jax.eval_shape(lambda: init_variables(random, 0, IMAGES.shape[1:]))
    assert jax.tree.structure(same) == jax.tree.structure(variables)
    logits = [
        jax.jit(partial(model.apply, train=False))(variables, IMAGES) for model in (plain, random)
    ]
    np.testing.assert_array_equal(*logits)

    @jax.jit
    def branches(key):
        return random.apply(
            variables,
            np.repeat(IMAGES, 16, 0),
            train=True,
            mutable=["batch_stats", "intermediates"],
            rngs={"dropout": key},
            capture_intermediates=lambda module, _: module.name == "stochastic_depth",
        )[1]["intermediates"]["features"]

    def dropped(key):
        # Which examples lost their branch, by block.
        found = branches(jax.random.key(key))
        blocks = [found[name]["stochastic_depth"]["__call__"][0] for name in sorted(found)]
        return [np.asarray((each == 0).all((1, 2, 3))) for each in blocks]

    first, again, other = dropped(1), dropped(1), dropped(2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    rates = [each.mean() for each in first]
    np.testing.assert_allclose(rates, [0.5 / 3, 1 / 3, 0.5], atol=0.18)
    assert rates == sorted(rates)


def test_what_stays_of_a_branch_makes_up_for_what_is_left_out():
    class Branch(nn.Module):
        @nn.compact
        def __call__(self, x):
            return residual.drop_branch(x, 0.2, True)

    y = Branch().apply({}, jnp.ones((4096, 2, 2, 3)), rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.8)}
    assert (np.asarray(y) == np.asarray(y)[:, :1, :1, :1]).all()
    np.testing.assert_allclose(y.mean(), 1, atol=0.02)
