"""Outputs and gradients stay finite for degenerate and extreme inputs, in every type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sop import ops
from tests.ops.functions import DISCARDS, NAMES, on_features

SHAPE = (2, 2, 3, 3)
NORMAL = np.random.default_rng(0).standard_normal(SHAPE)


def outlier():
    x = NORMAL.copy()
    x[0, 0, 0, 0] = 3e4
    return x


INPUTS = {
    "zeros": np.zeros(SHAPE),
    "constant": np.full(SHAPE, 3.7),
    "one position": NORMAL[:, :1, :1],
    "fewer positions than channels": NORMAL[:, :1, :2],
    "identical samples": np.repeat(NORMAL[:1], 2, axis=0),
    "1e-20": 1e-20 * NORMAL,
    "1e-6": 1e-6 * NORMAL,
    "1e4": 1e4 * NORMAL,
    "1e9": 1e9 * NORMAL,
    "outlier": outlier(),
}
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


def poisoned(value):
    x = NORMAL.copy()
    x[0, 0, 1, 2] = value
    return x


POISON = {str(value): poisoned(value) for value in (np.nan, np.inf, -np.inf)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_finite_where_the_input_is(name, dtype):
    """NaN or ±∞ in the first image makes its output not finite, and leaves the second's alone."""
    # jit once for each shape, which most inputs share.
    compiled = {}
    for key, values in INPUTS.items():
        if key == "1e9" and dtype == jnp.float16:
            continue
        if values.shape != SHAPE and dtype != jnp.float32:
            continue  # the algorithm for these shapes is float32 whatever comes in
        x = jnp.asarray(values, dtype)
        f = on_features(x.shape)[name]
        if x.shape not in compiled:

            def both(x, f=f):
                y, pullback = jax.vjp(f, x)
                return y, pullback(jnp.ones_like(y))[0]

            compiled[x.shape] = jax.jit(both)
        y, gradient = compiled[x.shape](x)
        assert jnp.isfinite(y).all(), key
        assert jnp.isfinite(gradient).all(), key
    normal = [np.asarray(a, np.float32) for a in compiled[SHAPE](jnp.asarray(NORMAL, dtype))]
    for key, values in POISON.items():
        found = [np.asarray(a, np.float32) for a in compiled[SHAPE](jnp.asarray(values, dtype))]
        if key not in DISCARDS.get(name, ()):
            assert not np.isfinite(found[0][0]).all(), key
        for a, b in zip(found, normal, strict=True):
            np.testing.assert_array_equal(a[1], b[1], err_msg=key)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [(2, 2), (3, 3)])
def test_finite_for_every_lambda(window, dtype):
    @jax.jit
    def both(x, lam):
        def pool(x, lam):
            return ops.max_entropy_pool(x, lam, window, (2, 2), (1, 1))

        y, pullback = jax.vjp(pool, x, lam)
        return y, *pullback(jnp.ones_like(y))

    for key, values in INPUTS.items():
        if values.shape != SHAPE or (key == "1e9" and dtype == jnp.float16):
            continue
        for lam in (0.0, 1e-8, 50.0, 1e4, -50.0):
            found = both(jnp.asarray(values, dtype), jnp.full((1, 1, 1, 1), lam))
            assert all(jnp.isfinite(a).all() for a in found), (key, lam)


@pytest.mark.parametrize("window", [(2, 2), (3, 3)])
def test_pooling_over_the_whole_range_of_float32(window):
    largest = float(jnp.finfo(jnp.float32).max)
    x = jnp.asarray(np.clip(NORMAL * 1e39, -largest, largest), jnp.float32)

    @jax.jit
    def both(x, lam):
        def pool(x):
            return ops.max_entropy_pool(x, lam, window, (2, 2), (1, 1))

        y, pullback = jax.vjp(pool, x)
        return y, *pullback(jnp.ones_like(y))

    for lam in (0.0, 1e-38, 1.0, 1e38, -1e38):
        y, gradient = both(x, jnp.full((1, 1, 1, 1), lam))
        assert jnp.isfinite(y).all(), lam
        assert jnp.isfinite(gradient).all(), lam


def zeros(f):
    """Whether f(x), its pullback and its derivative are zero, compiled."""

    @jax.jit
    def run(x):
        y, pullback = jax.vjp(f, x)
        found = y, pullback(jnp.ones_like(y))[0], jax.jvp(f, (x,), (jnp.ones_like(x),))[1]
        return jnp.array([jnp.all(a == 0) for a in found])

    return run


@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (2, 1, 2, 3)])
def test_zero_covariance_has_zero_root_and_derivatives(shape):
    for autodiff in (False, True):
        vanish = zeros(lambda x, autodiff=autodiff: ops.isqrt_cov(x, 3, autodiff))
        for value in (0.0, 3.7, 1e9):
            assert vanish(jnp.full(shape, value)).all(), value


def test_zero_matrix_has_zero_root_and_derivatives():
    for f in (lambda a: ops.matrix_sqrt(a, 3), lambda a: ops.matrix_power(a, 0.5)):
        assert zeros(f)(jnp.zeros((1, 4, 4))).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e9, 1e20, 1e30])
@pytest.mark.parametrize("shape", [(1, 2, 2, 6), (1, 3, 3, 4)])
def test_root_scales_beyond_the_range_of_the_covariance(scale, shape):
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)

    @jax.jit
    def both(x):
        y, pullback = jax.vjp(ops.isqrt_cov, x)
        return y, pullback(jnp.ones_like(y))[0]

    y, gradient = both(x)
    scaled, scaled_gradient = both(x * scale)
    np.testing.assert_allclose(scaled / scale, y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scaled_gradient, gradient, rtol=1e-4, atol=1e-5)


def test_half_precision_is_accumulated_in_float32():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 40, 40, 2)) + 2, jnp.bfloat16)
    found = ops.covariance(x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, ops.covariance(x.astype(jnp.float32)), rtol=1e-6)


REFUSED = [
    (lambda: ops.covariance(jnp.ones((2, 3, 4))), r"x has shape \(2, 3, 4\): give"),
    (lambda: ops.covariance(jnp.ones((2, 0, 4, 1))), "at least 1"),
    (lambda: ops.covariance(jnp.ones((2, 3, 4, 1), int)), "x has dtype int32: cast"),
    (lambda: ops.isqrt_cov(jnp.ones((1, 2, 2, 1)), 0), "num_iters is 0 but must be"),
    (lambda: ops.isqrt_cov(jnp.ones((1, 2, 2, 1)), 2.0), "num_iters is 2.0 but must be"),
    (lambda: ops.isqrt_cov(jnp.ones((1, 2, 2, 1)), precision="low"), "precision is 'low' but must"),
    (lambda: ops.matrix_sqrt(jnp.eye(2), precision="low"), "precision is 'low' but must be"),
    (lambda: ops.matrix_sqrt(jnp.ones((2, 3))), r"a has shape \(2, 3\): give square"),
    (lambda: ops.matrix_power(jnp.ones((2, 2)), 0), "alpha is 0: give"),
    (lambda: ops.sparse_inverse_covariance(jnp.eye(2), num_steps=1), "num_steps is 1: give"),
    (lambda: ops.upper_triangle(jnp.ones(3)), "give square"),
    (
        lambda: ops.drop_rate(jnp.ones((1, 3)), jnp.ones((1, 2, 2))),
        r"shape \(1, 2, 2\) for weights",
    ),
    (lambda: ops.max_entropy_pool(jnp.ones((1, 4, 4, 2)), jnp.ones((1, 3, 1, 1))), "lam has shape"),
    (lambda: ops.max_entropy_pool(jnp.ones((1, 4, 4, 2)), 1.0, (5, 5)), "window is 5 for 4"),
    (lambda: ops.max_entropy_pool(jnp.ones((1, 4, 4, 2)), 1.0, padding=(2, 2)), "padding is 2"),
    (lambda: ops.max_entropy_pool(jnp.ones((1, 4, 4, 2)), 1.0, strides=(0, 1)), "strides is"),
    (lambda: ops.adaptive_average_pool(jnp.ones((1, 4, 4, 2)), (0, 1)), "shape is"),
    (lambda: ops.row_convolution(jnp.ones((1, 2, 3)), jnp.ones((2, 2, 1)), 0), "kernel has shape"),
    (lambda: ops.cgd(jnp.ones((1, 2, 2, 3)), [jnp.ones(2)] * 3), "weights have shapes"),
    (
        lambda: ops.compact_bilinear(
            jnp.ones((1, 1, 1, 2)), *ops.tensor_sketch_hashes(0, 3, 8), projected_dim=8
        ),
        "hash_1 has shape",
    ),
]


@pytest.mark.parametrize("call, sentence", REFUSED)
def test_refusals(call, sentence, unchecked):
    with pytest.raises(ValueError, match=sentence):
        call()
