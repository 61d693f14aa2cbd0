"""Heads of transformers beyond the suites of the zoo: the class token, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sop import layers, ops
from sop.errors import UsageError
from tests.layers import zoo

TOKENS = jax.random.normal(jax.random.key(0), (2, 1 + 12, 8))
HEADS = [layers.MGCrP(True, heads=2, dim=3), layers.MomentProbing(True, width=14, heads=2)]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_class_token_stands_in_front_and_is_not_pooled(head, dtype):
    variables = zoo.variables(head, TOKENS)
    y = head.apply(variables, TOKENS.astype(dtype), False)
    assert y.dtype == jnp.float32
    other = head.apply(variables, TOKENS.at[:, 0].set(1e4).astype(dtype), False)
    np.testing.assert_array_equal(y[:, 8:], other[:, 8:])
    factor = 0.5 if isinstance(head, layers.MomentProbing) else 1.0
    np.testing.assert_allclose(y[:, :8], factor * TOKENS[:, 0].astype(dtype), rtol=1e-6)
    # The words are those of a head without a class token.
    alone = head.clone(class_token=False)
    given = {"params": {**zoo.variables(alone, TOKENS[:, 1:])["params"], **variables["params"]}}
    words = alone.apply(given, TOKENS[:, 1:].astype(dtype), False)
    np.testing.assert_allclose(y[:, 8:], words[:, -y[:, 8:].shape[1] :], rtol=1e-6)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (2, 1, 8)])
def test_a_class_token_that_is_missing_is_refused(head, shape):
    with pytest.raises(UsageError, match=r"class token first, or set class_token=False"):
        jax.eval_shape(lambda x: head.init(jax.random.key(0), x, False), jnp.zeros(shape))


@pytest.mark.parametrize(("width", "heads"), [(15, 2), (14, 1), (24, 4)])
def test_heads_that_do_not_fit_are_refused(width, heads):
    head = layers.MomentProbing(width=width, heads=heads)
    with pytest.raises(UsageError, match="heads that divide it"):
        jax.eval_shape(lambda x: head.init(jax.random.key(0), x, False), TOKENS)


def test_many_iterations_find_the_largest_singular_value():
    """Of rank one the result is the power itself; else the others are divided as the largest is."""
    a = jax.random.normal(jax.random.key(1), (3, 5, 4))
    u, values, v = np.linalg.svd(np.float64(a), full_matrices=False)
    found = ops.singular_value_power(a, jnp.ones(4), 0.3, 60, epsilon=0.0)
    values = np.concatenate([values[:, :1] ** 0.3, values[:, 1:] / values[:, :1] ** 0.7], 1)
    np.testing.assert_allclose(found, (u * values[:, None]) @ v, atol=2e-5)


def test_large_features_keep_the_scale_of_the_power():
    """The pooled entries grow as the features to the power 2α, far beyond where A overflows."""
    head = layers.MGCrP(heads=2, dim=3, alpha=0.25)
    variables = zoo.variables(head, TOKENS)
    y = head.apply(variables, TOKENS * 1e6, False)
    np.testing.assert_allclose(
        head.apply(variables, TOKENS * 1e6 * 2.0**80, False), y * 2.0**40, rtol=1e-4
    )
