"""Pullbacks by hand: which rule is used in which mode, and every transformation of both."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sop.ops.derivatives import linear, with_pullback

X, A = jnp.linspace(-1, 1, 6).reshape(3, 2), jnp.float32(0.7)


def written(x, a):
    return jnp.sin(a * x).sum(-1)


def by_hand(factor):
    """`written` with a pullback `factor` times the right one, so that its use can be seen."""

    def pullback(x, a, cotangent):
        g = factor * cotangent[..., None] * jnp.cos(a * x)
        return g * a, jnp.sum(g * x)

    return with_pullback(written, pullback)


def test_reverse_mode_is_the_pullback_and_forward_mode_is_not():
    for argnum in (0, 1):
        expected = jax.jacrev(written, argnum)(X, A)
        np.testing.assert_allclose(jax.jacrev(by_hand(3), argnum)(X, A), 3 * expected, atol=1e-5)
        np.testing.assert_allclose(jax.jacfwd(by_hand(3), argnum)(X, A), expected, atol=1e-5)


FORWARD, REVERSE = jax.jacfwd, jax.jacrev


@pytest.mark.parametrize(
    "modes",
    [
        *itertools.product((FORWARD, REVERSE), repeat=2),
        (REVERSE, FORWARD, REVERSE),
        (REVERSE, REVERSE, REVERSE),
    ],
)
def test_higher_derivatives_in_every_order_of_modes(modes):
    @jax.jit
    def derivatives():
        found = []
        for f in (by_hand(1), written):
            for mode in modes:
                f = mode(f, (0, 1))
            found.append(f(X[:1], A))
        return found

    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), *derivatives())


def test_vmap_over_one_argument_sums_the_cotangents_of_the_other():
    def total(f):
        return lambda x, a: jnp.sum(jax.vmap(f, (0, None))(x, a) ** 2)

    found, expected = (jax.grad(total(f), (0, 1))(X[:, None], A) for f in (by_hand(1), written))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_the_transpose_of_the_transpose_is_the_operation():
    def double(x):
        return linear(lambda _, x: [2 * x[0]], lambda _, y: [5 * y[0]], [x])[0]

    def transpose(f):
        return lambda y: jax.linear_transpose(f, X)(y)[0]

    np.testing.assert_array_equal(transpose(double)(X), 5 * X)
    np.testing.assert_array_equal(transpose(transpose(double))(X), 2 * X)


def test_reverse_mode_traces_no_forward_derivative():
    """It would be only for its types; the pullback is traced once, when a program is lowered."""
    traced = []

    @jax.custom_jvp
    def f(x):
        return jnp.sin(x)

    @f.defjvp
    def _(primals, tangents):
        traced.append("forward")
        return f(*primals), jnp.cos(primals[0]) * tangents[0]

    def pullback(x, cotangent):
        traced.append("back")
        return (jnp.cos(x) * cotangent,)

    program = jax.jit(jax.grad(lambda x: with_pullback(f, pullback)(x).sum())).trace(X)
    assert traced == []
    np.testing.assert_allclose(program.lower().compile()(X), jnp.cos(X), rtol=1e-6)
    assert traced == ["back"]


@pytest.mark.parametrize("check_vma", [True, False])
def test_derivatives_over_devices(check_vma):
    """Where types say what varies between devices, those of the results do too."""
    mesh = Mesh(jax.devices()[:3], "batch")

    def derivatives(x, a):
        f = by_hand(1)
        return jax.grad(lambda x: f(x, a).sum())(x), jax.jvp(f, (x, a), (x, a))[1]

    over = jax.shard_map(
        derivatives,
        mesh=mesh,
        in_specs=(P("batch"), P()),
        out_specs=P("batch"),
        check_vma=check_vma,
    )
    for found, expected in zip(jax.jit(over)(X, A), derivatives(X, A), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
