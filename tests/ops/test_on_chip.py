"""Functions of matrices in one kernel: interpreted, and where a program for a TPU has one."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sop import ops
from sop.ops import matrix_functions
from sop.ops.matrix_functions import newton_schulz, newton_schulz_and_adjoint
from sop.ops.on_chip import kernel, on_chip

KERNEL = "tpu_custom_call"


def covariances(size, *batch, seed=0):
    """Symmetric, positive definite, of trace 1."""
    x = np.random.default_rng(seed).normal(size=(*batch, size, 2 * size)).astype("float32")
    a = x @ x.swapaxes(-1, -2)
    return jnp.asarray(a / np.trace(a, axis1=-2, axis2=-1)[..., None, None])


def program(f, *arrays):
    """For a TPU."""
    return jax.jit(f).trace(*arrays).lower(lowering_platforms=("tpu",)).as_text()


@pytest.fixture
def interpreted(monkeypatch):
    """Newton–Schulz iterations are kernels here too."""

    def by_kernel(f, *matrices, results=1):
        return kernel(*matrices, f=f, results=results, interpret=True)

    monkeypatch.setattr(matrix_functions, "on_chip", by_kernel)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("size", [5, 130])
def test_the_kernel_is_the_function(size, inverse, request):
    """Also where rows and columns fill the matrix up, in which the inverse root is not zero."""
    a, direction = covariances(size, 1, 2), covariances(size, 1, 2, seed=1)
    how = {"num_iters": 3, "inverse": inverse}

    def both():
        return newton_schulz(a, **how), *newton_schulz_and_adjoint(a, direction, **how)

    expected = both()
    request.getfixturevalue("interpreted")
    for found, wanted in zip(both(), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize("precision", ["highest", "default"])
def test_its_products_have_the_precision_asked_for(precision, interpreted):
    """Their numbers, forward and with the derivative, are those of docs/accelerators.md."""
    a = covariances(8, 2)
    how = {"num_iters": 5, "inverse": True, "precision": precision}
    programs = (
        jax.make_jaxpr(partial(newton_schulz, **how))(a),
        jax.make_jaxpr(partial(newton_schulz_and_adjoint, **how))(a, a),
    )
    for program, products in zip(map(str, programs), (11, 25), strict=True):
        found = re.findall(r"precision=\(Precision\.(\w+), Precision\.(\w+)\)", program)
        assert len(found) == program.count("dot_general[") == products
        assert set(found) == {(precision.upper(),) * 2}


def test_what_a_kernel_lacks_is_not_hidden():
    def of_three_passes(a):
        return [jnp.matmul(a, a, precision="high")]

    with pytest.raises(NotImplementedError, match="precision"):
        program(lambda a: on_chip(of_three_passes, a)[0], covariances(8, 2))


def of_a_map(precision="highest"):
    return lambda x: jax.grad(lambda x: ops.isqrt_cov(x, 3, precision=precision).sum())(x)


MAP = jnp.ones((8, 3, 3, 16))


def test_a_tpu_runs_the_kernel():
    """One for the iterations, and one for them and their derivative."""
    assert program(partial(ops.isqrt_cov, num_iters=3), MAP).count(KERNEL) == 1
    assert program(of_a_map(), MAP).count(KERNEL) == 1
    assert program(ops.matrix_inverse_sqrt, covariances(4, 2)).count(KERNEL) == 1


def test_what_the_kernel_does_not_take_runs_without():
    assert KERNEL not in program(of_a_map("high"), MAP)
    assert KERNEL not in program(ops.isqrt_cov, jnp.ones((1, 17, 17, 257)))
    with jax.enable_x64(True):
        assert KERNEL not in program(ops.isqrt_cov, jnp.ones((2, 3, 3, 4)))
    size = jax.export.symbolic_shape("b")
    of_any_batch = jax.ShapeDtypeStruct((*size, 3, 3, 4), jnp.float32)
    exported = jax.export.export(jax.jit(ops.isqrt_cov), platforms=["tpu"])(of_any_batch)
    assert KERNEL not in exported.mlir_module()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_batch_that_jit_divides_runs_without(kind):
    """A kernel is for one device: the compiler would refuse it there; each part's own has it."""
    mesh = Mesh(np.array(jax.devices()[:2]), "data", axis_types=(kind,))
    divided = jax.ShapeDtypeStruct(MAP.shape, MAP.dtype, sharding=NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        assert KERNEL not in program(of_a_map(), divided)
        each = jax.shard_map(of_a_map(), mesh=mesh, in_specs=P("data"), out_specs=P("data"))
        assert program(each, divided).count(KERNEL) == 1


def test_derivatives_are_those_of_the_function():
    """Forwards, backwards, twice, and of a batch of batches."""
    a = covariances(2, 3, 2)

    def cube(a):
        return [a @ a @ a]

    def by_kernel(a):
        return on_chip(cube, a)[0]

    def plain(a):
        return cube(a)[0]

    np.testing.assert_allclose(by_kernel(a), plain(a))
    for change in (jax.jacfwd, jax.jacrev, jax.hessian, jax.vmap, lambda f: jax.vmap(f, 1, 1)):
        np.testing.assert_allclose(change(by_kernel)(a), change(plain)(a), rtol=1e-5, atol=1e-6)
    with_constant = jax.vmap(lambda a, b: on_chip(lambda a, b: [a @ b], a, b)[0], (0, None))
    np.testing.assert_allclose(with_constant(a, a[0]), a @ a[0], rtol=1e-5)
    assert jax.jit(by_kernel)(a.astype("bfloat16")).dtype == "bfloat16"
