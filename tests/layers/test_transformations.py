"""The layers under jit, vmap, repeated gradients, rematerialisation and shard_map."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sop import layers
from tests.layers import zoo

# One of each kind of layer whose gradient is more than that of a linear map.
DIFFERENTIABLE = {
    "MPNCOV": layers.MPNCOV(reduction=3, num_iters=3),
    "MPNCOV eigh": layers.MPNCOV(reduction=3, normalization="eigh"),
    "MPNCOV log": layers.MPNCOV(reduction=3, normalization="log"),
    "MPNCOV element": layers.MPNCOV(reduction=3, normalization="element"),
    "GeneralizedMean": layers.GeneralizedMean(2.0),
    "GaussianPooling": layers.GaussianPooling(reduction=3, num_iters=2, beta=0.5),
    "DeepBDC": layers.DeepBDC(reduction=3),
    "ISICE": layers.ISICE(reduction=3, num_steps=2),
    "MGCrP": layers.MGCrP(heads=2, dim=3),
    "MomentProbing": layers.MomentProbing(width=14, heads=2),
    "BilinearCNN": layers.BilinearCNN(),
    "CompactBilinear": layers.CompactBilinear(projected_dim=32),
    "IterNorm": layers.IterNorm(group_size=2, num_iters=3),
    "GSoP": layers.GSoP(3, stride=2),
    "CompactGSoP": layers.CompactGSoP(3),
    "CGD": layers.CGD(),
    "SpatialCGD": layers.SpatialCGD(),
    "ToyCGD": layers.ToyCGD(),
    "GFGP": layers.GFGP(2, 2),
    "MaxEntropyPool": layers.MaxEntropyPool(2, 2, learned="channel"),
}


def features(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def trained(module, variables, x):
    """Output in training mode; BN statistics are dropped."""
    rngs = {"dropout": jax.random.key(0)}
    return module.apply(variables, x, True, mutable=["batch_stats"], rngs=rngs)[0]


def close(found, expected, tolerance=1e-5):
    scale = max(np.abs(expected).max(), 1e-3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", zoo.LAYERS)
def test_vmap_equals_one_by_one(name):
    module = zoo.LAYERS[name]
    xs = features((2, 3, 4, 5, zoo.channels(name)))
    variables = zoo.variables(module, xs[0])

    @jax.jit
    def both(xs):
        apply = partial(trained, module, variables)
        return jax.vmap(apply)(xs), jax.lax.map(apply, xs)

    found, expected = both(xs)
    close(found, expected)


@pytest.mark.parametrize("name", zoo.LAYERS)
def test_types_are_those_of_the_arguments(name):
    """Where JAX has 64-bit types as well; parameters and statistics are float32 there too."""
    module = zoo.LAYERS[name]

    def types(tree):
        return jax.tree.map(lambda a: a.dtype, tree)

    def derivatives(params, x, rest):
        def apply(params, x):
            return trained(module, {**rest, "params": params}, x)

        gradients = jax.grad(lambda params, x: jnp.sum(apply(params, x)), (0, 1))(params, x)
        return gradients, jax.jvp(apply, (params, x), (params, x))

    with jax.enable_x64(True):
        for dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
            x = jax.ShapeDtypeStruct((2, 2, 3, zoo.channels(name)), dtype)
            rest = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, True), x)
            assert {str(each) for each in jax.tree.leaves(types(rest))} <= {"float32", "int32"}
            params = rest.pop("params", {})
            gradients, outputs = jax.eval_shape(derivatives, params, x, rest)
            assert types(gradients) == types((params, x))
            representation = name in zoo.REPRESENTATIONS
            expected = jnp.promote_types(dtype, jnp.float32) if representation else x.dtype
            assert types(outputs) == (expected, expected)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives_equal_finite_differences(name):
    """Of outputs and of gradients, in both modes and float64, by the input and every parameter."""
    module = DIFFERENTIABLE[name]
    generator = np.random.default_rng(0)
    # Compiling takes nearly all of the time, so LLVM does not optimise.
    jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    with jax.enable_x64(True):
        x = features((3, 4, 4, 4)).astype(np.float64)
        variables = jax.tree.map(
            lambda a: a.astype(np.float64) if a.dtype == np.float32 else a,
            zoo.variables(module, x.astype(np.float32)),
        )
        point = x, variables.pop("params", {})

        def apply(x, params):
            return trained(module, {**variables, "params": params}, x)

        y = jax.eval_shape(apply, *point)
        assert y.dtype == np.float64
        u = jax.tree.map(lambda a: generator.standard_normal(a.shape), point)
        v, w = generator.standard_normal(y.shape), generator.standard_normal(x.shape)

        def both(x, params):
            gradient = jax.grad(lambda x: jnp.sum(apply(x, params) ** 2))(x)
            return jnp.stack([jnp.vdot(v, apply(x, params)), jnp.vdot(w, gradient)])

        @jit
        def derivatives(*point):
            jacobians = jax.jacrev(both, (0, 1))(*point)
            products = jax.tree.map(lambda j, u: jnp.tensordot(j, u, u.ndim), jacobians, u)
            return jax.jvp(both, point, u)[1], sum(jax.tree.leaves(products))

        h = 1e-5
        values = jit(both)
        ahead, behind = (
            values(*jax.tree.map(lambda a, b, s=s: a + s * h * b, point, u)) for s in (1, -1)
        )
        for found in derivatives(*point):
            np.testing.assert_allclose(found, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["MPNCOV", "GSoP", "GFGP", "CompactBilinear"])
def test_rematerialised_gradient_is_the_same(name):
    module = DIFFERENTIABLE[name]
    x = features((3, 4, 4, 4))
    variables = zoo.variables(module, x)
    names = [field.name for field in dataclasses.fields(module) if field.name != "parent"]
    fields = {name: getattr(module, name) for name in names}
    rematerialised = nn.remat(type(module), static_argnums=(2,))(**fields)

    def gradient(module):
        return jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(trained(module, variables, x)))))(x)

    close(gradient(rematerialised), gradient(module))


@pytest.mark.parametrize(
    "module",
    [
        layers.MPNCOV(reduction=3, axis_name="batch"),
        layers.GSoP(3, "fusion_avg", axis_name="batch"),
        layers.CompactGSoP(3, axis_name="batch"),
        layers.GFGP(2, axis_name="batch"),
        layers.IterNorm(group_size=2, axis_name="batch"),
    ],
    ids=lambda module: type(module).__name__,
)
def test_batch_statistics_are_those_of_all_devices(module):
    """Under shard_map with `axis_name`, outputs and new statistics are those of one big batch."""
    x = features((4, 4, 4, 4))
    alone = module.clone(axis_name=None)
    variables = zoo.variables(alone, x)

    def apply(module, x):
        return module.apply(variables, x, True, mutable=["batch_stats"])

    mesh = Mesh(jax.devices()[:2], "batch")
    sharded = jax.shard_map(
        partial(apply, module), mesh=mesh, in_specs=P("batch"), out_specs=(P("batch"), P())
    )
    y, statistics = jax.jit(sharded)(x)
    expected, expected_statistics = jax.jit(partial(apply, alone))(x)
    close(y, expected, 2e-5)
    jax.tree.map(close, statistics, expected_statistics)


def test_sharded_batch_without_batch_norm():
    module = layers.BilinearCNN()
    mesh = Mesh(jax.devices()[:4], "batch")
    x = features((4, 3, 3, 4))
    apply = partial(module.apply, {}, train=False)
    sharded = jax.shard_map(apply, mesh=mesh, in_specs=P("batch"), out_specs=P("batch"))
    close(jax.jit(sharded)(x), apply(x))


@pytest.mark.parametrize("name", ["MPNCOV reduced", "GSoP channel", "GFGP", "CompactBilinear"])
def test_a_new_batch_is_not_compiled_again(name):
    module = zoo.LAYERS[name]
    traced = []

    @jax.jit
    def apply(variables, x):
        traced.append(x.shape)
        return trained(module, variables, x)

    variables = zoo.variables(module, features((2, 3, 3, 8)))
    for seed in range(3):
        apply(variables, features((2, 3, 3, 8), seed))
    assert len(traced) == 1


@pytest.mark.parametrize("name", ["MPNCOV reduced", "MPNCOV", "GSoP channel", "BilinearCNN"])
def test_bfloat16_covariance_is_accumulated_in_float32(name):
    """A sum of 4096 products in bfloat16 would be wrong in the first digit."""
    module = zoo.LAYERS[name]
    x = jnp.asarray(features((1, 64, 64, 8)) + 1, jnp.bfloat16)
    variables = zoo.variables(module, x)
    variables["params"] = jax.tree.map(
        lambda w: w.astype(jnp.bfloat16).astype(jnp.float32), variables.get("params", {})
    )
    apply = jax.jit(partial(module.apply, variables, train=False))
    exact, found = apply(x.astype(jnp.float32)), apply(x)
    if name in zoo.ATTENTIONS:  # the output itself is rounded to bfloat16
        close(found.astype(jnp.float32), exact, 2**-8)
    else:
        close(found, exact, 1e-5)
