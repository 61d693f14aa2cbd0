"""Batch norm against its equation in float64 NumPy, over devices, and for inputs that break it."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from sop.errors import UsageError
from sop.layers import BatchNorm
from sop.layers.norm import _moments


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def variables_of(channels, seed=0):
    rng = np.random.default_rng(seed)

    def uniform():
        return rng.uniform(0.5, 1.5, channels).astype(np.float32)

    return {
        "params": {"scale": uniform(), "bias": uniform()},
        "batch_stats": {"mean": uniform(), "var": uniform()},
    }


def trained(norm, variables, x):
    return norm.apply(variables, x, True, mutable=["batch_stats"])


def expected(variables, x, axis, momentum=0.1, epsilon=1e-5):
    """The output in training and the new running statistics, in float64."""
    x = np.moveaxis(np.asarray(x, np.float64), axis, -1)
    values = x.reshape(-1, x.shape[-1])
    n = len(values)
    mean, var = values.mean(0), values.var(0)
    scale, bias = (np.float64(variables["params"][key]) for key in ("scale", "bias"))
    y = scale * (x - mean) / np.sqrt(var + epsilon) + bias
    old = variables["batch_stats"]
    unbiased = var * n / (n - 1) if n > 1 else var
    statistics = {
        "mean": (1 - momentum) * np.float64(old["mean"]) + momentum * mean,
        "var": (1 - momentum) * np.float64(old["var"]) + momentum * unbiased,
    }
    return np.moveaxis(y, -1, axis), statistics


def assert_close(found, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        a, b = np.float64(a), np.float64(b)
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-30)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((4, 3, 5, 6), -1), ((4, 3, 5, 6), 1), ((7, 5), -1), ((3, 4, 5), 1), ((2, 3), -2)],
)
def test_equation(shape, axis):
    x, variables = draw(*shape) * 3 + 2, variables_of(shape[axis])
    y, updated = trained(BatchNorm(axis=axis), variables, x)
    expected_y, statistics = expected(variables, x, axis)
    assert_close(y, expected_y)
    assert_close(updated["batch_stats"], statistics)


def test_evaluation_uses_and_keeps_the_running_statistics():
    x, variables = draw(4, 3, 3, 5), variables_of(5)
    norm = BatchNorm(epsilon=1e-3)
    y, updated = norm.apply(variables, x, False, mutable=["batch_stats"])
    params, old = variables["params"], variables["batch_stats"]
    plain = (x - old["mean"]) / np.sqrt(old["var"] + 1e-3) * params["scale"] + params["bias"]
    assert_close(y, plain)
    assert_close(updated["batch_stats"], old, 0)


def test_running_statistics_after_several_steps():
    """Of two values each, whose unbiased variance is twice the other."""
    norm, variables = BatchNorm(momentum=0.3), variables_of(4)
    statistics = variables["batch_stats"]
    for step in range(5):
        x = draw(2, 4, seed=step)
        _, statistics = expected({**variables, "batch_stats": statistics}, x, -1, momentum=0.3)
        _, updated = trained(norm, variables, x)
        variables = {**variables, **updated}
    assert_close(variables["batch_stats"], statistics)


def test_variables_are_those_of_flax():
    x = jnp.zeros((2, 3, 3, 5))
    ours = BatchNorm().init(jax.random.key(0), x, True)
    theirs = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), x)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), ours) == jax.tree.map(
        lambda a: (a.shape, a.dtype), theirs
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_gradients_equal_finite_differences():
    """Twice: the variance's own derivative is differentiated again."""
    with jax.enable_x64(True):
        norm = BatchNorm()
        params = jax.tree.map(np.float64, variables_of(3)["params"])
        statistics = {"mean": np.zeros(3), "var": np.ones(3)}

        @jax.jit
        def f(x, params):
            y, _ = trained(norm, {"params": params, "batch_stats": statistics}, x)
            return jnp.sum(jnp.sin(y))

        x = np.float64(draw(2, 2, 2, 3))
        check_grads(f, (x, params), order=2, modes=["fwd", "rev"], atol=1e-6, rtol=1e-6)


def split(x, parts):
    return x.reshape(parts, len(x) // parts, *x.shape[1:])


def over_devices(how, f, x):
    """f over four parts of x: (y of the whole batch, statistics of each part [4, …])."""
    if how == "vmap":
        y, statistics = jax.vmap(f, axis_name="batch")(split(x, 4))
        return y.reshape(x.shape), statistics
    mesh = Mesh(jax.devices()[:4], "batch")

    def on_device(x):
        y, statistics = f(x)
        return y, jax.tree.map(lambda a: a[None], statistics)

    specs = {"in_specs": P("batch"), "out_specs": P("batch")}
    return jax.jit(jax.shard_map(on_device, mesh=mesh, **specs))(x)


@pytest.mark.parametrize("how", ["vmap", "shard_map"])
def test_over_devices_as_one_batch(how):
    """Outputs, running statistics and gradients, where devices' means lie far apart."""
    x = draw(8, 2, 3, 5) + 100 * np.arange(8, dtype=np.float32)[:, None, None, None]
    variables = variables_of(5)

    def run(norm, x):
        return trained(norm, variables, x)

    def gradient(loss):
        return jax.jit(jax.grad(loss))(x)

    alone, devices = partial(run, BatchNorm()), partial(run, BatchNorm(axis_name="batch"))
    y, updated = over_devices(how, devices, x)
    expected_y, expected_updated = alone(x)
    assert_close(y, expected_y)
    for leaf, whole in zip(
        jax.tree.leaves(updated), jax.tree.leaves(expected_updated), strict=True
    ):
        assert_close(leaf, np.broadcast_to(whole, leaf.shape))
    found = gradient(lambda x: jnp.sum(jnp.sin(over_devices(how, devices, x)[0])))
    assert_close(found, gradient(lambda x: jnp.sum(jnp.sin(alone(x)[0]))), 1e-4)


def test_one_value():
    """Its variance, 0, cannot be corrected by n/(n − 1)."""
    x, variables = draw(1, 1, 1, 4), variables_of(4)
    y, updated = trained(BatchNorm(), variables, x)
    assert_close(y, np.broadcast_to(variables["params"]["bias"], x.shape), 0)
    _, statistics = expected(variables, x, -1)
    assert_close(updated["batch_stats"], statistics)


def test_one_value_on_each_device_is_corrected_over_all():
    x, variables = draw(4, 1, 1, 3), variables_of(3)
    norm = BatchNorm(axis_name="batch")
    _, updated = over_devices("vmap", lambda x: trained(norm, variables, x), x)
    _, statistics = expected(variables, x, -1)
    for key, value in statistics.items():
        assert_close(updated["batch_stats"][key][0], value)


@pytest.mark.parametrize("value", [0.0, 3.3, -1e9, 1e30])
@pytest.mark.parametrize("devices", [1, 3])
def test_a_constant_map_has_no_variance(value, devices):
    """Not even that of its mean's rounding, of one device or of the mean of three."""
    x, variables = np.full((3, 5, 7, 2), value, np.float32), variables_of(2)
    norm = BatchNorm(axis_name="batch" if devices > 1 else None)
    run = partial(trained, norm, variables)
    y, updated = jax.vmap(run, axis_name="batch")(split(x, devices))
    bias, old = variables["params"]["bias"], variables["batch_stats"]["var"]
    assert_close(y, np.broadcast_to(bias, y.shape), 0)
    assert_close(updated["batch_stats"]["var"], np.broadcast_to(0.9 * old, (devices, 2)))


def test_large_means_keep_their_digits():
    x, variables = draw(4, 5, 5, 3) + 1e4, variables_of(3)
    y, updated = trained(BatchNorm(), variables, x)
    expected_y, statistics = expected(variables, x, -1)
    assert_close(y, expected_y, 1e-3)  # of x − μ, where μ is a number of float32
    assert_close(updated["batch_stats"], statistics)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-20, 1e-6, 1e4, 1e12, 1e20, 1e30])
def test_finite(dtype, scale):
    if scale > 1e4 and dtype == jnp.float16:
        scale = 1.5e4
    x, variables = jnp.asarray(draw(4, 3, 3, 2) * scale, dtype), variables_of(2)

    def run(params, x):
        return trained(BatchNorm(), {**variables, "params": params}, x)

    y, pullback, updated = jax.vjp(run, variables["params"], x, has_aux=True)
    assert y.dtype == dtype
    found = y, pullback(jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(dtype)), updated
    for leaf in jax.tree.leaves(found):
        assert jnp.isfinite(leaf).all()
    if 1e-6 < scale <= 1e12:  # ε and float32's range do not tell
        whitened = (np.float64(y) - variables["params"]["bias"]) / variables["params"]["scale"]
        np.testing.assert_allclose(whitened.var((0, 1, 2)), 1, rtol=0.02)


def test_bfloat16_has_statistics_of_float32():
    x, variables = jnp.asarray(draw(8, 16, 16, 3) + 2, jnp.bfloat16), variables_of(3)
    y, updated = trained(BatchNorm(), variables, x)
    exact, statistics = expected(variables, x, -1)
    assert_close(y, exact, 2**-8)
    assert_close(updated["batch_stats"], statistics)
    wide, _ = trained(BatchNorm(dtype=jnp.float32), variables, x)
    assert wide.dtype == jnp.float32
    assert_close(wide, exact)


@pytest.mark.parametrize(
    ("norm", "x", "sentence"),
    [
        (
            partial(BatchNorm, momentum=1.5),
            np.ones((2, 3)),
            "momentum of BatchNorm is 1.5 but",
        ),
        (
            partial(BatchNorm, epsilon=0.0),
            np.ones((2, 3)),
            "epsilon of BatchNorm is 0.0 but",
        ),
        (
            partial(BatchNorm, axis_name=3),
            np.ones((2, 3)),
            "axis_name of BatchNorm is 3 but",
        ),
        (BatchNorm, np.ones((2, 3), int), "dtype int.*: cast it"),
        (partial(BatchNorm, axis=2), np.ones((2, 3)), r"shape \(2, 3\), which has no axis 2"),
        (BatchNorm, np.ones((0, 3)), r"shape \(0, 3\): every axis must be at least 1"),
    ],
)
def test_refusals(norm, x, sentence, unchecked):
    with pytest.raises(UsageError, match=sentence):
        norm().init(jax.random.key(0), jnp.asarray(x), True)


@pytest.mark.parametrize("guess", [0.0, 999.0, 1000.0, 1e6])
def test_the_running_mean_does_not_matter(guess):
    """It is where sums are taken about, if it is near; these maps have deviation 1 about 1000."""
    x = 1000 + draw(8, 6, 6, 3)
    variables = variables_of(3)
    stale = {**variables, "batch_stats": {**variables["batch_stats"], "mean": jnp.full(3, guess)}}

    def run(x):
        y, pullback = jax.vjp(lambda x: trained(BatchNorm(), stale, x)[0], x)
        return y, pullback(jnp.cos(y))[0]

    with jax.enable_x64(True):
        wide = run(jnp.asarray(x, jnp.float64))
    for value, exact in zip(run(jnp.asarray(x, jnp.float32)), wide, strict=True):
        np.testing.assert_allclose(value, exact, atol=5e-4)


@pytest.mark.parametrize(("guess", "kept"), [(999.0, True), (1001.5, True), (995.0, False)])
def test_a_guess_near_every_mean_is_where_sums_are_taken_about(guess, kept):
    """So that x is read once; one channel that is far is enough for all to be read again."""
    x = 1000 + draw(8, 6, 6, 3)
    origin, centre, var = _moments(x, np.float32([1000, 1000, guess]), (0, 1, 2), 1e-5)
    assert (list(origin) == [1000, 1000, np.float32(guess)]) == kept
    np.testing.assert_allclose(origin + centre, x.mean((0, 1, 2), np.float64), rtol=1e-6)
    np.testing.assert_allclose(var, x.var((0, 1, 2), np.float64), rtol=1e-5)
