"""Derivatives against float64 finite differences, and the two ways to the square root's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sop import ops
from tests.ops.functions import NAMES, on_features


def directional(f, arguments, seed=0):
    """⟨v, df[u]⟩ by the pullback, by forward mode, and by central differences, in float64."""
    g = np.random.default_rng(seed)
    arguments = [jnp.asarray(a, jnp.float64) for a in arguments]
    u = [g.standard_normal(a.shape) for a in arguments]
    f = jax.jit(f)
    v = g.standard_normal(f(*arguments).shape)

    @jax.jit
    def both(*arguments):
        return jax.vjp(f, *arguments)[1](v), jax.jvp(f, arguments, tuple(u))[1]

    gradients, tangent = both(*arguments)
    h = 1e-5
    ahead = f(*(a + h * b for a, b in zip(arguments, u, strict=True)))
    behind = f(*(a - h * b for a, b in zip(arguments, u, strict=True)))
    by_pullback = sum(float(jnp.vdot(a, b)) for a, b in zip(gradients, u, strict=True))
    return [by_pullback, float(np.vdot(v, tangent))], float(np.vdot(v, (ahead - behind) / (2 * h)))


def features(*shape):
    return np.random.default_rng(1).standard_normal(shape) + 0.3


# More positions than channels, and fewer where that changes the algorithm. The derivative of the
# Padé roots is that of the root which they approximate.
CASES = [(name, (2, 2, 3, 3)) for name in NAMES if "pade" not in name]
CASES += [(name, (2, 1, 2, 3)) for name in NAMES if name.startswith("isqrt")]


@pytest.mark.parametrize("name, shape", CASES)
def test_finite_differences(name, shape):
    with jax.enable_x64(True):
        found, expected = directional(on_features(shape)[name], [features(*shape)])
    assert found == pytest.approx([expected] * 2, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("size", [(1, 1, 1, 2), (2, 3, 3, 2)])
@pytest.mark.parametrize("window, sign", [(2, 1), (2, -1), (3, 1)])
def test_finite_differences_by_lambda(size, window, sign):
    def f(x, lam):
        return ops.max_entropy_pool(x, lam, (window,) * 2, (2, 2), (1, 1))

    output = f(np.zeros((2, 5, 4, 2), np.float32), 1.0).shape
    lam = sign * np.abs(features(*(1 if a == 1 else b for a, b in zip(size, output, strict=True))))
    with jax.enable_x64(True):
        found, expected = directional(f, [features(2, 5, 4, 2), lam])
    assert found == pytest.approx([expected] * 2, rel=1e-6)


def test_finite_differences_by_parameters():
    def f(x, weights, biases):
        return ops.cgd(x, list(weights), list(biases))

    with jax.enable_x64(True):
        found, expected = directional(f, [features(2, 3, 2, 4), features(3, 4), features(3, 4)])
        assert found == pytest.approx([expected] * 2, rel=1e-6)
        arrays = [features(2, 3, 4), features(3, 4, 2), features(3, 2)]
        found, expected = directional(ops.row_convolution, arrays)
        assert found == pytest.approx([expected] * 2, rel=1e-6)


@pytest.mark.parametrize("num_iters", [2, 3, 5])
@pytest.mark.parametrize("shape", [(2, 2, 2, 6), (2, 3, 4, 5)])
def test_hand_derived_is_autodiff(num_iters, shape):
    x = jnp.asarray(features(*shape), jnp.float32)
    v = jnp.asarray(features(shape[0], shape[3] * (shape[3] + 1) // 2), jnp.float32)

    def both(autodiff):
        y, pullback = jax.vjp(lambda x: ops.isqrt_cov(x, num_iters, autodiff), x)
        return y, pullback(v)[0]

    by_hand, automatic = jax.jit(lambda: (both(False), both(True)))()
    for found, expected in zip(by_hand, automatic, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_matrix_sqrt_of_an_unsymmetric_direction():
    """Only the symmetric part of a counts; the pullback of any cotangent says so."""
    a = ops.covariance(jnp.asarray(features(2, 3, 4, 5), jnp.float32))
    v = jnp.asarray(features(2, 5, 5), jnp.float32)

    @jax.jit
    def both():
        functions = ops.matrix_sqrt, lambda a: ops.matrix_sqrt(a, autodiff=True)
        return [jax.vjp(f, a)[1](v)[0] for f in functions]

    found, automatic = both()
    np.testing.assert_allclose(found, automatic, atol=2e-5)
    np.testing.assert_allclose(found, found.swapaxes(1, 2), atol=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 0.3, 2.0])
def test_matrix_power_where_eigenvalues_repeat(alpha):
    """At a multiple of I, d(a^α) = α λ^(α−1) da."""
    v = jnp.asarray(features(1, 4, 4), jnp.float32)
    a = 4.0 * jnp.eye(4)[None]
    gradient = jax.vjp(lambda a: ops.matrix_power(a, alpha), a)[1](v)[0]
    expected = alpha * 4.0 ** (alpha - 1) * (v + v.swapaxes(1, 2)) / 2
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def kept(f, x):
    """Bytes that the pullback of f at x holds."""
    shapes = jax.eval_shape(lambda x: jax.vjp(f, x)[1], x)
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(shapes))


def test_backward_pass_keeps_the_input_alone():
    x = jnp.asarray(features(2, 3, 4, 6), jnp.float32)
    for num_iters in (1, 5, 11):
        assert kept(lambda x, n=num_iters: ops.isqrt_cov(x, n), x) == x.nbytes
    lam = 2 * jnp.float32(0).nbytes  # itself, and a tangent of zero
    assert kept(lambda x: ops.max_entropy_pool(x, 1.0), x) == x.nbytes + lam
    assert kept(ops.widen, x.astype(jnp.float16)) == 0


@pytest.mark.parametrize("batch", [(), (2,)])
def test_of_several_maxima_the_first_has_the_gradient(batch):
    """As in PyTorch: the gradient is what it is where the later ones are a little lower."""
    x = np.zeros((2, 3, 4, 5))
    x[:, 1, 2:, :2] = 1  # several positions, rows, columns and channels have the maximum
    weights = [features(5), features(3), features(4)]

    def channel(x):
        return ops.cgd(x, [weights[0]] * 3)

    def spatial(x):
        return ops.spatial_cgd(x, [weights[1]] * 3, [weights[2]] * 3)

    lower = 1e-9 * np.arange(x[0].size).reshape(x.shape[1:])  # row by row, channels last
    with jax.enable_x64(True):
        for f in (channel, spatial):
            gradient = jax.jit(jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x) + x))))
            if batch:
                gradient = jax.vmap(lambda x, g=gradient: g(x[None])[0])
            np.testing.assert_allclose(gradient(x), gradient(x - lower), atol=1e-6)
