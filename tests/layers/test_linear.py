"""1×1 convolutions as matrix products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sop.layers.linear import PointwiseConv


def array(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


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
