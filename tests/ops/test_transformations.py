"""jit, vmap, derivatives of gradients, types, shard_map; one compilation; no loop; examples."""

import doctest
import importlib
import pkgutil
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import sop.ops
from sop import ops
from tests.ops.functions import NAMES, on_features

SHAPE = (2, 2, 3, 3)
X = jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE), jnp.float32)
BY_HAND = [
    "isqrt_cov",
    "isqrt_gaussian",
    "matrix_sqrt",
    "matrix_power",
    "matrix_log",
    "power_cov",
    "log_cov",
    "upper_triangle",
    "max_entropy_pool 2",
]
# Their derivative is that of what they approximate, and its derivative that of the formula for it.
APPROXIMATE = ["matrix_sqrt_pade", "sqrt_cov_pade"]


def loss(f):
    return lambda x: jnp.sum(jnp.sin(f(x)))


@pytest.mark.parametrize("name", [*BY_HAND, *APPROXIMATE])
def test_vmap_jit_checkpoint_shard_map(name):
    f = on_features(SHAPE)[name]
    plain = jax.jit(jax.grad(loss(f)))(X)
    np.testing.assert_allclose(jax.jit(jax.grad(loss(jax.checkpoint(f))))(X), plain, atol=1e-5)
    one_by_one = jax.jit(jax.vmap(lambda x: jax.grad(loss(f))(x[None])[0]))(X)
    np.testing.assert_allclose(one_by_one, plain, atol=1e-5)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(jax.grad(loss(f)), mesh=mesh, in_specs=P("batch"), out_specs=P("batch"))
    np.testing.assert_allclose(jax.jit(sharded)(X), plain, atol=1e-5)


@pytest.mark.parametrize("name", BY_HAND)
def test_derivatives_of_the_gradient(name):
    """Each way to a Hessian-vector product against differences of gradients, in float64."""
    f = on_features(SHAPE)[name]
    with jax.enable_x64(True):
        x = jnp.asarray(X, jnp.float64)
        u, v = (jnp.asarray(np.random.default_rng(i).standard_normal(SHAPE)) for i in (1, 2))
        gradient = jax.jit(jax.grad(loss(f)))

        @jax.jit
        def products(x):
            return [
                jax.grad(lambda x: jnp.vdot(jax.grad(loss(f))(x), u))(x),  # reverse over reverse
                jax.jvp(jax.grad(loss(f)), (x,), (u,))[1],  # forward over reverse
                jax.grad(lambda x: jax.jvp(loss(f), (x,), (u,))[1])(x),  # reverse over forward
            ]

        found = [float(jnp.vdot(each, v)) for each in products(x)]
        h = 1e-5
        expected = jnp.vdot(gradient(x + h * u) - gradient(x - h * u), v) / (2 * h)
    assert found == pytest.approx([float(expected)] * 3, rel=1e-5)


@pytest.mark.parametrize("name", [*BY_HAND, *APPROXIMATE])
def test_jacobians_of_both_modes_are_equal(name):
    f = on_features(SHAPE)[name]
    forward, reverse = jax.jit(lambda x: (jax.jacfwd(f)(x), jax.jacrev(f)(x)))(X[:1, :, :2])
    np.testing.assert_allclose(forward, reverse, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_types_are_those_of_the_arguments(name):
    """Where JAX has 64-bit types as well, which a NumPy number on the way would bring in."""
    f = on_features(SHAPE)[name]
    with jax.enable_x64(True):
        for dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
            x = jax.ShapeDtypeStruct(SHAPE, dtype)
            y, dy = jax.eval_shape(lambda x: jax.jvp(f, (x,), (x,)), x)
            wide = jnp.promote_types(dtype, jnp.float32)
            assert y.dtype == dy.dtype == (dtype if y.shape == SHAPE or "pool" in name else wide)
            assert jax.eval_shape(jax.grad(lambda x: jnp.sum(f(x))), x).dtype == dtype


@pytest.mark.parametrize("name", NAMES)
def test_no_loop_and_one_compilation(name):
    f = on_features(SHAPE)[name]
    traces = 0

    def gradient(x):
        nonlocal traces
        traces += 1
        return jax.grad(loss(f))(x)

    compiled = jax.jit(gradient)
    compiled(X)
    compiled(X + 1)
    assert traces == 1
    jaxpr = str(jax.make_jaxpr(compiled)(X))
    assert "while[" not in jaxpr and "scan[" not in jaxpr


MODULES = [f"sop.ops.{module.name}" for module in pkgutil.iter_modules(sop.ops.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0


def test_every_public_function_has_an_example():
    for name in ops.__all__:
        assert ">>>" in getattr(ops, name).__doc__, name


@pytest.mark.parametrize(
    "f, calls",
    [
        (ops.sqrt_cov_pade, ["lapack_spotrf_ffi", *["lapack_strsm_ffi"] * 2]),
        (lambda x: ops.power_cov(x, 0.5), ["lapack_ssyevd_ffi"]),
        (ops.log_cov, ["lapack_ssyevd_ffi"]),
    ],
    ids=["pade", "power", "log"],
)
@pytest.mark.parametrize("channels", [3, 6])
def test_one_decomposition_in_both_passes(channels, f, calls):
    """Two at a time can hang: each takes a thread of XLA's and waits for another one."""
    program = jax.jit(jax.value_and_grad(loss(f))).lower(jnp.ones((2, 2, 2, channels))).compile()
    assert re.findall(r'custom_call_target="(lapack[^"]*)"', program.as_text()) == calls
