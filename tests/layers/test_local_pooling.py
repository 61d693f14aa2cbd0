"""Local pooling against slow, obvious NumPy on random shapes."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sop import layers, ops
from tests.layers import zoo


@st.composite
def geometries(draw):
    window = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    return {
        "window": window,
        "strides": draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
        "padding": draw(st.tuples(*(st.integers(0, size // 2) for size in window))),
        "ceil_mode": draw(st.booleans()),
    }


def windows_along(size, axis, window, strides, padding, ceil_mode):
    """(first, last + 1) of the positions of each window along an axis, padding included."""
    end = size + padding[axis]
    found, first = [], -padding[axis]
    while first + window[axis] <= end:
        found.append((first, first + window[axis]))
        first += strides[axis]
    # Ceil mode adds a window for positions that none has reached, if it starts inside the image.
    if ceil_mode and found[-1][1] < end and first < size:
        found.append((first, end))
    return found


def pooled(x, geometry, of_window):
    """of_window(values [rows, columns, C], number of positions with padding) → [C]."""
    rows = windows_along(x.shape[1], 0, **geometry)
    columns = windows_along(x.shape[2], 1, **geometry)
    y = np.zeros((x.shape[0], len(rows), len(columns), x.shape[3]))
    for b in range(x.shape[0]):
        for i, (top, bottom) in enumerate(rows):
            for j, (left, right) in enumerate(columns):
                values = x[b, max(top, 0) : bottom, max(left, 0) : right].astype(np.float64)
                y[b, i, j] = of_window(values, (bottom - top) * (right - left))
    return y


POOLS = {
    "max": (layers.MaxPool, lambda values, _: values.max((0, 1))),
    "average": (layers.AveragePool, lambda values, count: values.sum((0, 1)) / count),
    "average inside": (
        lambda **geometry: layers.AveragePool(**geometry, count_include_pad=False),
        lambda values, _: values.mean((0, 1)),
    ),
}


@pytest.mark.parametrize("name", POOLS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(geometry=geometries(), size=st.tuples(st.integers(4, 7), st.integers(4, 7)))
def test_equation(name, geometry, size):
    module, of_window = POOLS[name]
    x = np.random.default_rng(0).standard_normal((1, *size, 2)).astype(np.float32)
    found = module(**geometry).apply({}, x, False)
    np.testing.assert_allclose(found, pooled(x, geometry, of_window), rtol=0, atol=1e-5)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(geometry=geometries())
def test_skip_has_the_windows_of_the_others(geometry):
    x = np.random.default_rng(0).standard_normal((1, 6, 5, 2)).astype(np.float32)
    module = layers.SkipPool(**geometry)
    variables = zoo.variables(module, x)
    kernel = variables["params"]["conv"]["kernel"]
    found = module.apply(variables, x, False)
    for i, (top, bottom) in enumerate(windows_along(6, 0, **geometry)):
        for j, (left, right) in enumerate(windows_along(5, 1, **geometry)):
            values = np.zeros(kernel.shape[:3])
            inside = x[0, max(top, 0) : bottom, max(left, 0) : right]
            rows, columns = max(-top, 0), max(-left, 0)
            values[rows : rows + inside.shape[0], columns : columns + inside.shape[1]] = inside
            expected = np.einsum("hwc,hwcd->d", values, kernel)
            np.testing.assert_allclose(found[0, i, j], expected, rtol=0, atol=1e-5)
    assert found.shape[1:3] == (
        len(windows_along(6, 0, **geometry)),
        len(windows_along(5, 1, **geometry)),
    )


def test_average_in_float16_is_summed_in_float32():
    x = np.full((1, 4, 4, 1), 4e4, np.float16)
    y = layers.AveragePool(4).apply({}, x, False)
    assert y.dtype == np.float16 and np.all(np.asarray(y) == x[:, :1, :1])


@pytest.mark.parametrize("mode", ["sample_channel", "sample", "position"])
def test_gfgp_has_a_lambda_for_each(mode):
    x = np.random.default_rng(0).standard_normal((2, 5, 5, 4)).astype(np.float32)
    geometry = {"window": (3, 3), "strides": (2, 2), "padding": (1, 1)}
    module = layers.GFGP(**geometry, mode=mode, hidden_node=3)
    variables = zoo.variables(module, x)
    params, statistics = variables["params"], variables["batch_stats"]

    def step(y, conv, norm):
        y = y @ params[conv]["kernel"][0, 0] + params[conv]["bias"]
        y = (y - statistics[norm]["mean"]) / np.sqrt(statistics[norm]["var"] + 1e-5)
        return y * params[norm]["scale"] + params[norm]["bias"]

    if mode == "position":
        y = layers.AveragePool(**geometry, count_include_pad=False).apply({}, x, False)
    else:
        y = x.mean((1, 2), keepdims=True)
    y = step(np.maximum(step(y, "squeeze", "squeeze_norm"), 0), "excite", "excite_norm")
    lam = 1 / (1 + np.exp(-y))
    shapes = {"sample_channel": (2, 1, 1, 4), "sample": (2, 1, 1, 1), "position": (2, 3, 3, 4)}
    assert lam.shape == shapes[mode]
    found = module.apply(variables, x, False)
    np.testing.assert_allclose(found, ops.max_entropy_pool(x, lam, **geometry), atol=1e-5)


def test_learned_lambda_starts_at_its_value():
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 3)).astype(np.float32)
    fixed = layers.MaxEntropyPool(lam=2.0).apply({}, x, False)
    for learned, size in (("constant", 1), ("channel", 3)):
        module = layers.MaxEntropyPool(lam=2.0, learned=learned)
        y, variables = module.init_with_output(jax.random.key(0), x, False)
        assert variables["params"]["lam"].shape == (size,)
        np.testing.assert_allclose(y, fixed, rtol=1e-6)
