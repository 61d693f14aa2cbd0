"""1×1 convolutions as matrix products."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sop.layers.linear import PointwiseConv, convolve
from sop.models.network import Conv

OPTIONS = {"lhs_dilation": (1, 1), "dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def array(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


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

    def value_and_gradients(f):
        y, pullback = jax.vjp(lambda x, k: f(x, k, strides, padding, **options), x, kernel)
        return y, *pullback(jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(dtype))

    found, expected = value_and_gradients(convolve), value_and_gradients(lax.conv_general_dilated)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype == dtype
        a, b = np.float32(a), np.float32(b)
        np.testing.assert_allclose(a, b, atol=4 * jnp.finfo(dtype).eps * np.abs(b).max())
    convolutions = "conv_general_dilated" in str(
        jax.make_jaxpr(partial(convolve, strides=strides, padding=padding, **options))(x, kernel)
    )
    assert convolutions != multiplies


def test_networks_multiply_for_1x1_convolutions():
    x = jnp.ones((1, 4, 4, 8))
    conv = Conv(3, (1, 1), 2)
    variables = conv.init(jax.random.key(0), x)
    assert variables["params"]["kernel"].shape == (1, 1, 8, 3)
    assert "conv_general_dilated" not in str(jax.make_jaxpr(conv.apply)(variables, x))


@pytest.mark.parametrize("features", [3, 12])
def test_second_derivatives_of_a_pointwise_conv(features):
    x = jnp.asarray(array((2, 3, 3, 6), 2))
    conv = PointwiseConv(features)
    variables = conv.init(jax.random.key(0), x)

    def ours(variables):
        return jnp.sum(jnp.tanh(conv.apply(variables, x)) ** 2)

    def plain(variables):
        params = variables["params"]
        return jnp.sum(jnp.tanh(x @ params["kernel"][0, 0] + params["bias"]) ** 2)

    along = jax.tree.map(lambda a: jnp.cos(a * 9), variables)
    for f in (jax.grad, lambda f: lambda v: jax.jvp(jax.grad(f), (v,), (along,))[1]):
        for a, b in zip(
            jax.tree.leaves(f(ours)(variables)), jax.tree.leaves(f(plain)(variables)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
