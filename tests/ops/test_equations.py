"""Every function against its equation, written out in float64 NumPy, on random shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sop import ops
from tests.ops import slow

# From a fixed list: each new shape costs a compilation of every operation.
SHAPES = st.sampled_from([(1, 1, 1, 1), (2, 3, 5, 1), (1, 1, 1, 4), (2, 2, 3, 9), (1, 5, 3, 4)])
SEEDS = st.integers(0, 2**32 - 1)
few = settings(max_examples=12, deadline=None)


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_close(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-30)


@few
@given(SHAPES, SEEDS)
def test_covariance(shape, seed):
    x = draw(seed, *shape)
    found = np.asarray(ops.covariance(x))
    assert np.array_equal(found, found.swapaxes(1, 2))
    assert_close(found, slow.covariance(x))


def test_covariance_of_a_large_mean_keeps_its_digits():
    x = draw(0, 2, 4, 5, 3) + 1000
    assert_close(ops.covariance(x), slow.covariance(x))


@few
@given(SHAPES, SEEDS, st.sampled_from([1, 2, 3, 4, 5, 8]))
def test_isqrt_cov(shape, seed, num_iters):
    x = draw(seed, *shape)
    assert_close(ops.isqrt_cov(x, num_iters), slow.isqrt_cov(x, num_iters))


@pytest.mark.parametrize("beta", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 3, 5), (1, 1, 1, 1)])
def test_isqrt_gaussian(shape, beta):
    x = draw(0, *shape) + 1
    assert_close(ops.isqrt_gaussian(x, 5, beta), slow.isqrt_gaussian(x, 5, beta))


@pytest.mark.parametrize("num_iters", [1, 2, 3, 4, 5, 7, 12])
def test_matrix_sqrt(num_iters):
    x = draw(0, 2, 3, 4, 6)
    a = np.asarray(ops.covariance(x))
    assert_close(ops.matrix_sqrt(a, num_iters), slow.matrix_sqrt(a, num_iters))


def test_matrix_sqrt_converges_to_the_root():
    a = np.eye(5, dtype=np.float32) + np.asarray(ops.covariance(draw(0, 1, 3, 4, 5)))
    root = np.asarray(ops.matrix_sqrt(a, 20))
    assert_close(root @ root, a)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 3, 5), (1, 1, 1, 1)])
def test_matrix_power(shape, alpha):
    a = np.asarray(ops.covariance(draw(0, *shape)))
    # A vanishing eigenvalue is known to 1e-7 of the largest, its power to (1e-7)^α.
    assert_close(ops.matrix_power(a, alpha), slow.matrix_power(a, alpha), 1e-5 + 1e-6**alpha)


@pytest.mark.parametrize("epsilon", [1e-3, 1.0])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 3, 5), (1, 1, 1, 1)])
def test_matrix_log(shape, epsilon):
    a = np.asarray(ops.covariance(draw(0, *shape)))
    # Of an eigenvalue that is known to 1e-7 of the largest, log(λ + ε) is known to 1e-7/ε of it.
    tolerance = 1e-5 + 1e-7 * np.abs(a).max() / epsilon
    assert_close(ops.matrix_log(a, epsilon), slow.matrix_log(a, epsilon), tolerance)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 2, 2, 9), (2, 1, 3, 5), (1, 1, 1, 2)])
@pytest.mark.parametrize(
    "of_features, of_covariance",
    [
        (lambda x: ops.power_cov(x, 0.5), lambda x: slow.matrix_power(slow.covariance(x), 0.5)),
        (lambda x: ops.power_cov(x, 1.5), lambda x: slow.matrix_power(slow.covariance(x), 1.5)),
        (lambda x: ops.log_cov(x, 0.1), lambda x: slow.matrix_log(slow.covariance(x), 0.1)),
    ],
    ids=["root", "power", "log"],
)
def test_spectral_functions_of_covariances(of_features, of_covariance, shape):
    x = draw(0, *shape)
    assert_close(of_features(x), of_covariance(x))


@pytest.mark.parametrize("shape", [(2, 2, 2, 9), (2, 1, 3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize(
    "of_features, of_matrices",
    [
        (lambda x: ops.power_cov(x, 0.5), lambda a: ops.matrix_power(a, 0.5)),
        (lambda x: ops.power_cov(x, 2.0), lambda a: ops.matrix_power(a, 2.0)),
        (lambda x: ops.log_cov(x, 1e-3), lambda a: ops.matrix_log(a, 1e-3)),
    ],
    ids=["root", "square", "log"],
)
def test_gradients_of_spectral_functions_by_the_gram_matrix(of_features, of_matrices, shape):
    """Against those by C × C eigenvectors, in float64: at these conditions to 1e-9."""
    with jax.enable_x64(True):
        x, v = (jnp.asarray(a, jnp.float64) for a in (draw(0, *shape), draw(1, 2, *shape[3:] * 2)))

        def derivatives(f):
            return jax.vjp(f, x)[1](v)[0], jax.jvp(f, (x,), (x**2,))[1]

        expected = derivatives(lambda x: of_matrices(ops.covariance(x)))
        for a, b in zip(derivatives(of_features), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9 * np.abs(b).max())


@pytest.mark.parametrize(
    "f, tolerance",
    [
        (lambda x: ops.log_cov(x, 1e-2), 1e-3),
        (lambda x: ops.log_cov(x, 10.0), 1e-5),
        (lambda x: ops.power_cov(x, 1.0), 1e-5),
        (lambda x: ops.power_cov(x, 1.5), 1e-5),
    ],
    ids=["log 0.01", "log 10", "covariance", "power 1.5"],
)
def test_gradients_where_most_eigenvalues_are_rounding_errors(f, tolerance):
    """Of smooth maps, in float32: what ε or the power makes harmless is not left out."""
    corners = draw(0, 2, 2, 2, 64)
    smooth = jax.image.resize(corners, (2, 5, 5, 64), "linear") + 2e-3 * draw(1, 2, 5, 5, 64)
    v = draw(2, 2, 64, 64)

    def gradient(dtype):
        x = jnp.asarray(smooth, dtype)
        return np.asarray(jax.vjp(f, x)[1](jnp.asarray(v, dtype))[0])

    found = gradient(jnp.float32)
    with jax.enable_x64(True):
        exact = gradient(jnp.float64)
    assert np.linalg.norm(found - exact) <= tolerance * np.linalg.norm(exact)


def test_spectral_functions_beyond_the_range_of_the_covariance():
    x = draw(0, 1, 1, 3, 5)
    root = np.asarray(ops.power_cov(x, 0.5))
    for scale in (1e-25, 1e30):
        assert_close(ops.power_cov(scale * x, 0.5) / scale, root)
    with jax.enable_x64(True):
        exact = ops.log_cov(1e15 * jnp.asarray(x, jnp.float64), 1e-3)
    assert_close(ops.log_cov(1e15 * x, 1e-3), np.asarray(exact))


@pytest.mark.parametrize("alpha", [1.0, 2.0, 10.0])
def test_powers_that_leave_the_range_are_finite(alpha):
    x = 1e20 * draw(0, 1, 1, 3, 5)
    x[..., 0] = 1e20  # of no variance
    y, pullback = jax.vjp(lambda x: ops.power_cov(x, alpha), x)
    assert np.isfinite(y).all() and not np.asarray(y)[0, 0].any()
    assert np.isfinite(pullback(jnp.zeros_like(y).at[0, 0].set(1e-20))[0]).all()


SIZES = [(2, 3, 4, 5), (2, 1, 3, 5), (1, 1, 1, 1)]


@pytest.mark.parametrize("shape", SIZES)
def test_pade_square_root(shape):
    x = draw(0, *shape)
    expected = slow.matrix_sqrt_pade(slow.covariance(x)) if x[0].size > 1 else np.zeros((1, 1, 1))
    assert_close(ops.matrix_sqrt_pade(ops.covariance(x)), expected)
    assert_close(ops.sqrt_cov_pade(x), expected)


def test_derivative_of_the_pade_square_root_solves_the_lyapunov_equation():
    """Eight steps of the iteration from 1/11 are at 0.999 of the solution; from ½ at all of it."""
    a = np.eye(5) + 0.3 * np.asarray(ops.covariance(draw(0, 2, 3, 4, 5)))
    d = draw(1, 2, 5, 5)
    d = d + d.swapaxes(1, 2)
    root, found = jax.jvp(ops.matrix_sqrt_pade, (jnp.float32(a),), (d,))
    assert_close(root @ root, a)
    assert_close(found, slow.lyapunov(root, d))
    [pulled] = jax.vjp(ops.matrix_sqrt_pade, jnp.float32(a))[1](d)
    assert_close(pulled, slow.lyapunov(root, d))


@pytest.mark.parametrize("shape", SIZES[:2])
def test_gradient_of_the_pade_square_root_by_the_gram_matrix(shape):
    x, v = draw(0, *shape), draw(1, shape[0], shape[3], shape[3])

    def derivatives(f):
        return jax.vjp(f, x)[1](v)[0], jax.jvp(f, (x,), (x**2,))[1]

    found = derivatives(ops.sqrt_cov_pade)
    for a, b in zip(
        found, derivatives(lambda x: ops.matrix_sqrt_pade(ops.covariance(x))), strict=True
    ):
        assert_close(a, b, 2e-5)


def test_drop_rate_is_what_the_original_computes():
    """The rate that the original's code printed for these numbers."""
    x, weights = draw(5, 3, 4, 4, 32), jax.nn.softmax(draw(6, 3, 32))
    sigma = ops.covariance(x)
    assert ops.drop_rate(weights, sigma) == pytest.approx(0.17468315362930298, rel=1e-5)
    assert ops.drop_rate(weights, 1e-30 * sigma) == pytest.approx(0.174683153, rel=1e-5)
    assert ops.drop_rate(weights, 0 * sigma) == 1


@pytest.mark.parametrize("num_iters", [1, 2, 5, 7])
def test_matrix_inverse_sqrt(num_iters):
    a = np.asarray(ops.covariance(draw(0, 2, 3, 4, 6)))
    expected = slow.matrix_inverse_sqrt(a, num_iters)
    assert_close(ops.matrix_inverse_sqrt(a, num_iters), expected)


@pytest.mark.parametrize("sparsity", [0.0, 0.3])
def test_sparse_inverse_covariance(sparsity):
    a = np.asarray(ops.covariance(draw(0, 2, 5, 6, 4)))
    expected = slow.sparse_inverse_covariance(a, sparsity, 2.0, 4, 7)
    assert_close(ops.sparse_inverse_covariance(a, sparsity, 2.0, 4), expected)


def test_a_step_out_of_the_definite_matrices_is_not_taken():
    a = np.asarray(ops.covariance(draw(0, 2, 5, 6, 4)))
    far = ops.sparse_inverse_covariance(a, 0.3, step_size=1e3)
    assert np.linalg.eigvalsh(far).min() > 0


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 1, 5), (1, 2, 3, 1)])
def test_brownian_distance_matrix(shape):
    x = draw(0, *shape) + 100
    found = ops.brownian_distance_matrix(x, -1.3)
    assert_close(found, slow.brownian_distance_matrix(x, -1.3), 2e-5)


@few
@given(SHAPES, SEEDS)
def test_bilinear(shape, seed):
    x = draw(seed, *shape)
    assert_close(ops.bilinear(x), slow.bilinear(x), 2e-5)


@few
@given(st.sampled_from([(1, 1, 1, 1), (2, 2, 3, 5), (1, 3, 1, 4)]), SEEDS, st.sampled_from([1, 7]))
def test_compact_bilinear(shape, seed, size):
    x = np.abs(draw(seed, *shape))
    hash_1, sign_1, hash_2, _ = ops.tensor_sketch_hashes(seed, shape[3], size)
    same = np.abs(sign_1)  # without signs nothing cancels, whose rounding the root would magnify
    arguments = (hash_1, same, hash_2, same, size)
    assert_close(ops.compact_bilinear(x, *arguments), slow.compact_bilinear(x, *arguments))


def test_compact_bilinear_is_a_convolution_of_sketches():
    x = draw(3, 2, 2, 3, 5)
    hashes = ops.tensor_sketch_hashes(3, 5, 16)
    assert_close(
        ops.compact_bilinear(x, *hashes, 16), slow.compact_bilinear(x, *hashes, 16), tolerance=1e-4
    )


def test_hashes_depend_on_the_seed_alone():
    again = ops.tensor_sketch_hashes(1, 50, 8192)
    for first, second in zip(ops.tensor_sketch_hashes(1, 50, 8192), again, strict=True):
        assert np.array_equal(first, second)
    assert not np.array_equal(again[0], ops.tensor_sketch_hashes(2, 50, 8192)[0])
    assert not np.array_equal(again[0], again[2])


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0, -2.0, 40.0])
def test_generalized_mean(power):
    x = np.abs(draw(0, 2, 3, 4, 5)) + 0.1
    assert_close(ops.generalized_mean(x, power), slow.generalized_mean(x, power, 1e-6))


def test_generalized_mean_of_powers_out_of_range():
    x = 1e30 * (np.abs(draw(0, 2, 3, 4, 5)) + 0.1)
    assert_close(ops.generalized_mean(x, 8.0), slow.generalized_mean(x, 8.0, 1e-6))


WINDOWS = [
    # shape, window, strides, padding, ceil_mode, output; the outputs are PyTorch's.
    ((2, 8, 6, 3), (2, 2), (2, 2), (0, 0), False, (4, 3)),
    ((1, 7, 5, 1), (2, 2), (2, 2), (0, 0), False, (3, 2)),
    ((1, 7, 5, 2), (2, 2), (2, 2), (0, 0), True, (4, 3)),
    ((2, 7, 8, 3), (3, 3), (2, 2), (1, 1), False, (4, 4)),
    ((2, 6, 9, 2), (3, 3), (2, 2), (1, 1), True, (4, 5)),
    ((1, 5, 4, 1), (2, 2), (3, 3), (1, 1), True, (2, 2)),
    ((1, 1, 1, 1), (1, 1), (1, 1), (0, 0), False, (1, 1)),
    ((1, 4, 9, 2), (2, 3), (2, 3), (1, 0), False, (3, 3)),
]


@pytest.mark.parametrize("case", WINDOWS)
@pytest.mark.parametrize("kind", ["constant", "channel", "position", "negative"])
def test_max_entropy_pool(case, kind):
    shape, window, strides, padding, ceil_mode, output = case
    x = draw(0, *shape)
    full = (shape[0], *output, shape[3])
    size = {"channel": (1, 1, 1, shape[3]), "position": full}.get(kind, (1, 1, 1, 1))
    lam = np.abs(draw(1, *size)) * (-1 if kind == "negative" else 1)
    found = ops.max_entropy_pool(x, lam, window, strides, padding, ceil_mode)
    assert_close(found, slow.max_entropy_pool(x, lam, window, strides, padding, output))


def test_max_entropy_pool_reaches_average_and_maximum():
    x = draw(0, 1, 4, 6, 2)
    tiles = x.reshape(1, 2, 2, 3, 2, 2)
    assert_close(ops.max_entropy_pool(x, 0.0), tiles.mean((2, 4)))
    assert_close(ops.max_entropy_pool(x, 1e6), tiles.max((2, 4)))
    assert_close(ops.max_entropy_pool(x, -1e6), tiles.min((2, 4)))


@pytest.mark.parametrize("case", WINDOWS)
def test_max_pool(case):
    """Of few values, so that many are equal: the gradient is then the first one's."""
    shape, window, strides, padding, ceil_mode, output = case
    x = np.random.default_rng(0).integers(0, 3, shape).astype(np.float32)
    cotangent = draw(1, shape[0], *output, shape[3])
    y, pullback = jax.vjp(lambda x: ops.max_pool(x, window, strides, padding, ceil_mode), x)
    expected, gradient = slow.max_pool(x, window, strides, padding, cotangent)
    assert_close(y, expected)
    assert_close(pullback(cotangent)[0], gradient)


@pytest.mark.parametrize("shape", [(3, 2), (8, 8), (7, 5), (1, 1), (10, 3)])
def test_adaptive_average_pool(shape):
    x = draw(0, 2, 7, 5, 3)
    assert_close(ops.adaptive_average_pool(x, shape), slow.adaptive_average_pool(x, shape))


@few
@given(SHAPES, SEEDS)
def test_position_covariance(shape, seed):
    x = draw(seed, *shape)
    assert_close(ops.position_covariance(x), slow.position_covariance(x), 2e-5)


def test_row_convolution():
    a, kernel, bias = draw(0, 3, 4, 5), draw(1, 4, 5, 2), draw(2, 4, 2)
    assert_close(ops.row_convolution(a, kernel, bias), slow.row_convolution(a, kernel, bias))


@pytest.mark.parametrize("inner_tanh", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 1)])
def test_cgd(shape, inner_tanh):
    x, weights, biases = draw(0, *shape), draw(1, 3, shape[3]), draw(2, 3, shape[3])
    found = ops.cgd(x, list(weights), list(biases), inner_tanh)
    assert_close(found, slow.cgd(x, weights, biases, inner_tanh))
    assert_close(ops.cgd(x, list(weights), None), slow.cgd(x, weights, 0 * biases, True))


def test_spatial_and_toy_cgd():
    x = draw(0, 2, 4, 3, 5)
    vectors = draw(1, 3, 4), draw(2, 3, 3), draw(3, 3, 4), draw(4, 3, 3)
    assert_close(ops.spatial_cgd(x, *map(list, vectors)), slow.spatial_cgd(x, *vectors))
    w = draw(5, 5)
    mean = x.mean((1, 2))
    expected = x * (1 + np.tanh(mean * (mean @ w)[:, None]))[:, None, None]
    assert_close(ops.toy_cgd(x, w), expected)


def test_upper_triangle():
    a = jnp.arange(18).reshape(2, 3, 3)
    assert ops.upper_triangle(a).tolist() == [[0, 1, 2, 4, 5, 8], [9, 10, 11, 13, 14, 17]]
