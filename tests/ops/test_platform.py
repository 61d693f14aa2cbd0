"""What is done on one platform alone: chosen for the device, equal elsewhere, exportable."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sop import ops
from sop.models.network import Conv
from sop.ops.bilinear import _sketch_by_products, _sketch_by_spectra
from sop.ops.platform import convolve, in_halves, in_turns, interleave, multiply

OPTIONS = {"lhs_dilation": (1, 1), "dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def array(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def value_and_gradients(f, *arguments):
    y, pullback = jax.vjp(f, *arguments)
    return y, *pullback(jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype))


def lowered(f, *arguments, platform):
    return jax.jit(f).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("size", "strides", "padding", "groups", "multiplies"),
    [
        (1, (1, 1), "SAME", 1, True),
        (1, (2, 2), "SAME", 1, True),
        (1, (2, 3), "VALID", 1, True),
        (1, (2, 1), [(0, 0), (0, 0)], 1, True),
        (1, (2, 2), [(1, 0), (0, 0)], 1, False),
        (1, (1, 1), "SAME", 2, False),
        (3, (1, 1), "SAME", 1, False),
    ],
)
def test_convolve_equals_lax(size, strides, padding, groups, multiplies, dtype):
    x = array((2, 5, 6, 8), 0).astype(dtype)
    kernel = array((size, size, 8 // groups, 4), 1).astype(dtype)
    options = {**OPTIONS, "feature_group_count": groups}

    def ours(x, kernel):
        return convolve(x, kernel, strides, padding, **options)

    def plain(x, kernel):
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)

    found, expected = (value_and_gradients(jax.jit(f), x, kernel) for f in (ours, plain))
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype == dtype
        a, b = np.float32(a), np.float32(b)
        np.testing.assert_allclose(a, b, atol=4 * jnp.finfo(dtype).eps * np.abs(b).max())
    on_cpu, on_gpu = (lowered(ours, x, kernel, platform=each) for each in ("cpu", "cuda"))
    assert ("stablehlo.convolution" not in on_cpu) == multiplies
    assert "stablehlo.convolution" in on_gpu and "dot_general" not in on_gpu


@pytest.mark.parametrize(
    ("shape", "size", "strides", "padding"),
    [
        ((3, 60, 60), 3, (1, 1), "SAME"),  # a part is some rows of an image, the last has fewer
        ((2, 121, 83), 7, (2, 1), [(3, 2), (1, 3)]),
        ((2, 121, 83), (2, 3), (1, 2), "VALID"),
        ((41, 9, 9), 3, (1, 1), [(1, 1), (0, 2)]),  # some images
    ],
)
def test_gradients_of_kernels_in_parts(shape, size, strides, padding):
    x = array((*shape, 3), 0)
    kernel = array((*np.broadcast_to(size, 2), 3, 4), 1)

    def run(convolution, x, kernel):
        return value_and_gradients(
            lambda x, k: convolution(x, k, strides, padding, **OPTIONS), x, kernel
        )

    ours, plain = (partial(run, f) for f in (convolve, lax.conv_general_dilated))
    for a, b in zip(jax.jit(ours)(x, kernel), jax.jit(plain)(x, kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
    on_cpu, on_cuda, as_written = (
        lowered(f, x, kernel, platform=where)
        for f, where in ((ours, "cpu"), (ours, "cuda"), (plain, "cpu"))
    )
    assert on_cpu.count("call @of_part") > 2 and "of_part" not in on_cuda
    convolutions = [text.count("stablehlo.convolution") for text in (on_cuda, as_written)]
    assert convolutions[0] == convolutions[1]


def test_forward_mode_and_second_derivatives_of_a_large_convolution():
    x, kernel = array((1, 60, 60, 1), 0), array((3, 3, 1, 1), 1)

    def norm(convolution, kernel):
        return jnp.sum(jnp.sin(convolution(x, kernel, (1, 1), "SAME", **OPTIONS)))

    for derivative in (jax.jacfwd, jax.hessian):
        found, expected = (
            jax.jit(derivative(partial(norm, f)))(kernel)
            for f in (convolve, lax.conv_general_dilated)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_networks_multiply_for_1x1_convolutions_on_cpu():
    x = jnp.ones((1, 4, 4, 8))
    conv = Conv(3, (1, 1), 2)
    variables = conv.init(jax.random.key(0), x)
    assert variables["params"]["kernel"].shape == (1, 1, 8, 3)
    compiled = jax.jit(jax.grad(lambda v: conv.apply(v, x).sum())).lower(variables).compile()
    text = compiled.as_text()
    assert "convolution(" not in text and "conditional" not in text


@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
def test_multiply_equals_the_product(shape):
    x, kernel = array((2, 4, shape[0]), 0), array(shape, 1)
    found = value_and_gradients(jax.jit(multiply), x, kernel)
    for a, b in zip(found, value_and_gradients(jnp.matmul, x, kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    # The transposed gradient of a kernel taller than wide, on CPU alone.
    gradient = jax.grad(lambda k: jnp.sum(multiply(x, k) ** 2))
    barriers = [
        "optimization_barrier" in lowered(gradient, kernel, platform=each)
        for each in ("cpu", "cuda")
    ]
    assert barriers == [shape[0] > shape[1], False]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_halves_are_the_whole(batch):
    x = array((batch, 3, 3, 4), 0)
    sizes = []

    def f(x):
        sizes.append(x.shape[0])
        return ops.covariance(x)

    np.testing.assert_allclose(jax.jit(partial(in_halves, f))(x), ops.covariance(x), atol=1e-6)
    assert {batch // 2, batch - batch // 2} <= set(sizes)


def test_halves_under_shard_map_and_vmap():
    x = array((4, 4, 3, 3, 5), 0)
    f = jax.jit(partial(ops.isqrt_cov, num_iters=3))
    expected = np.stack([f(each) for each in x])
    np.testing.assert_allclose(jax.vmap(f)(x), expected, rtol=1e-5, atol=1e-6)
    mesh = Mesh(jax.devices()[:4], "batch")
    sharded = jax.shard_map(f, mesh=mesh, in_specs=P("batch"), out_specs=P("batch"))
    flat = x.reshape(16, 3, 3, 5)
    np.testing.assert_allclose(
        jax.jit(sharded)(flat), expected.reshape(16, -1), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("size", [1, 2, 5])
def test_turns_are_the_whole(size):
    x, y = array((size, 3), 0), array((size, 3, 2), 1)

    def f(x, y):
        return jnp.sin(x)[..., None] * y

    def turns(x, y):
        return in_turns(f, x, y)

    found = value_and_gradients(jax.jit(turns), x, y)
    for a, b in zip(found, value_and_gradients(f, x, y), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    loops = ["stablehlo.while" in lowered(turns, x, y, platform=on) for on in ("cpu", "cuda")]
    assert loops == [True, False]


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 2), (1, 2)])
def test_interleave_on_every_platform(strides, monkeypatch):
    x = jnp.asarray(array((2, 3 * strides[0], 4 * strides[1], 5), 0))
    parts = [x[:, i :: strides[0], j :: strides[1]] for i, j in np.ndindex(*strides)]
    np.testing.assert_array_equal(interleave(parts, strides), x)
    monkeypatch.setattr(lax, "platform_dependent", lambda *parts, cpu, default: default(*parts))
    np.testing.assert_array_equal(interleave(parts, strides), x)


@pytest.mark.parametrize("channels", [4, 12])
def test_a_batch_of_any_size_is_exported_for_another_platform(channels):
    """Value and gradient, with fewer and with more channels than positions; run here on CPU."""

    def network(x, kernel):
        x = convolve(x, kernel, (1, 1), "SAME", **OPTIONS, feature_group_count=1)
        return ops.isqrt_cov(x, 3)

    def run(x, kernel):
        y, pullback = jax.vjp(network, x, kernel)
        return y, *pullback(jnp.ones_like(y))

    kernel = array((1, 1, 8, channels), 1)
    [batch] = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, 3, 2, 8), jnp.float32)
    exported = export.export(jax.jit(run), platforms=("cpu", "cuda", "tpu"))(images, kernel)
    for size in (1, 3):
        x = array((size, 3, 2, 8), 2)
        for a, b in zip(exported.call(x, kernel), jax.jit(run)(x, kernel), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", [3, 9])
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_all_products_of_an_iteration_have_the_precision_asked_for(positions, precision):
    """Those of the backward pass too."""

    def both(x):
        y, pullback = jax.vjp(lambda x: ops.isqrt_cov(x, 4, precision=precision), x)
        return pullback(y)

    x = jax.ShapeDtypeStruct((2, positions, 1, 5), jnp.float32)
    program = lowered(both, x, platform="cuda")
    found = re.findall(r"stablehlo\.dot_general.*precision = \[(\w+), (\w+)\]", program)
    assert len(found) == program.count("stablehlo.dot_general") > 5
    assert set(found) == {(precision.upper(),) * 2}


@pytest.mark.parametrize("size", [1, 8, 127])
def test_sketches_by_spectra_are_those_by_products(size):
    """Of even and odd length; also where no product falls, of channels that are zero."""
    x = np.maximum(array((2, 4, 24), 0), 0)
    x[:, :, 4:] = 0
    hashes = list(map(jnp.asarray, ops.tensor_sketch_hashes(1, 24, size)))
    expected, products = jax.vjp(partial(_sketch_by_products, size=size), x, *hashes)
    y, spectra = jax.vjp(partial(_sketch_by_spectra, size=size), x, *hashes)
    np.testing.assert_allclose(y, expected, atol=2e-6 * np.abs(expected).max())
    assert np.array_equal(y == 0, expected == 0)
    # Where they are zero the root that follows has no gradient.
    cotangent = jnp.where(expected == 0, 0, array(expected.shape, 1))
    for found, wanted in zip(spectra(cotangent), products(cotangent), strict=True):
        if wanted.dtype == jnp.float32:  # x and signs, not hashes
            np.testing.assert_allclose(found, wanted, atol=3e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_no_product_of_channels_is_added_up_alone_on_accelerators(platform):
    """But where there are so many positions that transforms would cost more."""

    def gradient(x):
        hashes = ops.tensor_sketch_hashes(0, x.shape[3], 32)
        return jax.grad(lambda x: ops.compact_bilinear(x, *hashes, 32).sum())(x)

    for side, expected in ((1, False), (8, True)):
        program = lowered(gradient, array((1, side, side, 64), 0), platform=platform)
        assert ("stablehlo.scatter" in program) == expected
