"""Local pooling: windows of maximum entropy, maximum, average; adaptive average."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sop.ops.covariance import PRECISION, at_least_float32, require_feature_map
from sop.ops.precision import narrow


def pool_padding(shape, window, strides, padding=(0, 0), ceil_mode=False):
    """How far to pad height and width so that windows fall as in PyTorch's pooling.

    An axis of size s has ⌊(s + 2p − k)/stride⌋ + 1 windows, ⌈·⌉ instead of ⌊·⌋ in ceil mode, where
    the last must start inside the image or its left padding.

    Args:
      shape: (H, W).
      window, strides, padding: pairs of ints, for height and width.
      ceil_mode: round the number of windows up.

    Returns:
      (H', W'), ((top, bottom), (left, right)): the number of windows and the padding that makes
      them fit exactly; bottom and right are negative where rows are left over.

    Raises:
      ValueError: a pair of numbers that PyTorch's pooling would refuse as well.

    >>> pool_padding((112, 112), (3, 3), (2, 2), (1, 1))
    ((56, 56), ((1, 0), (1, 0)))
    """
    for name, pair, least in (
        ("window", window, 1),
        ("strides", strides, 1),
        ("padding", padding, 0),
    ):
        if len(pair) != 2 or not all(isinstance(p, int) and p >= least for p in pair):
            raise ValueError(f"{name} is {pair!r}: give a pair of ints of at least {least}.")
    counts, pads = [], []
    for size, k, stride, p in zip(shape, window, strides, padding, strict=True):
        if 2 * p > k:
            raise ValueError(f"padding is {p}: it must be at most half of the window, {k}.")
        room = size + 2 * p - k
        count = (-(-room // stride) if ceil_mode else room // stride) + 1
        if ceil_mode and (count - 1) * stride >= size + p:
            count -= 1
        if count < 1:
            raise ValueError(f"window is {k} for {size} positions padded by {p}: shrink it.")
        counts.append(count)
        pads.append((p, (count - 1) * stride + k - size - p))
    return tuple(counts), tuple(pads)


@dataclasses.dataclass(frozen=True)
class _Grid:
    """Where windows lie: the arguments of `pool_padding` and what it found."""

    size: tuple[int, int]
    window: tuple[int, int]
    strides: tuple[int, int]
    counts: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]

    def places(self, x):
        """For each place in the window: its entries [B, H', W', C], and which are inside x.

        The second is [1, H', W', 1], or None where all are.
        """
        pads = ((0, 0, 0), *((*pad, 0) for pad in self.pads), (0, 0, 0))
        x = lax.pad(x, jnp.zeros((), x.dtype), pads)
        for place in np.ndindex(*self.window):
            starts = zip(place, self.counts, self.strides, strict=True)
            rows, columns = (slice(i, i + (n - 1) * stride + 1, stride) for i, n, stride in starts)
            yield x[:, rows, columns], self._inside(place)

    def _inside(self, place):
        inside = []
        for axis in range(2):
            at = np.arange(self.counts[axis]) * self.strides[axis] + place[axis]
            at -= self.pads[axis][0]
            inside.append((at >= 0) & (at < self.size[axis]))
        inside = np.logical_and.outer(*inside)[None, :, :, None]
        return None if inside.all() else inside


def _only(inside, values, otherwise):
    return values if inside is None else jnp.where(inside, values, otherwise)


def _reference(x, lam, grid):
    """The entry of each window that the softmax peaks at: its largest, smallest for λ < 0."""
    sign = jnp.where(lam < 0, -1.0, 1.0)
    lowest = jnp.finfo(x.dtype).min
    peaks = [_only(inside, sign * place, lowest) for place, inside in grid.places(x)]
    return lax.stop_gradient(sign * functools.reduce(jnp.maximum, peaks))


def _moments(x, lam, reference, grid):
    """Σ e, Σ e d / Σ e and Σ e d² / Σ e over windows, d = x − reference, e = exp(λ d)."""
    total = first = second = 0.0
    for place, inside in grid.places(x):
        d = _only(inside, place - reference, 0)
        e = _only(inside, jnp.exp(lam * d), 0)
        total += e
        first += e * d
        second += e * d * d
    return total, first / total, second / total


def _pool(x, lam, grid):
    reference = _reference(x, lam, grid)
    return reference + _moments(x, lam, reference, grid)[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pool_tiles(x, lam, grid):
    """`_pool` where windows tile the map: each entry is in one window, its gradient in one pass."""
    return _pool(x, lam, grid)


def _pool_tiles_backward(grid, residuals, cotangent):
    x, lam = residuals
    reference = _reference(x, lam, grid)
    total, mean, square = _moments(x, lam, reference, grid)
    to_lam = cotangent * (square - mean * mean)
    summed = [axis for axis in range(4) if lam.shape[axis] < cotangent.shape[axis]]
    batch, _, _, channels = x.shape
    rows, columns = (n * k for n, k in zip(grid.counts, grid.window, strict=True))
    pads = [(0, 0, 0), *((*pad, 0) for pad in grid.pads), (0, 0, 0)]
    tiles = lax.pad(x, jnp.zeros((), x.dtype), pads).reshape(
        batch, grid.counts[0], grid.window[0], grid.counts[1], grid.window[1], channels
    )
    reference, share, mean, lam = (
        a[:, :, None, :, None] for a in (reference, cotangent / total, mean, lam)
    )
    d = tiles - reference
    # Only padding, whose gradient is dropped, is beyond the reference. At the reference itself
    # jnp.minimum would halve the second derivative.
    exponent = lam * d
    exponent = jnp.where(exponent > 0, 0, exponent)
    gradient = share * jnp.exp(exponent) * (1 + lam * (d - mean))
    back = [(-low, -high, interior) for low, high, interior in pads]
    gradient = gradient.reshape(batch, rows, columns, channels)
    gradient = lax.pad(gradient, jnp.zeros((), x.dtype), back)
    return gradient, to_lam.sum(summed, keepdims=True)


_pool_tiles.defvjp(lambda x, lam, grid: (_pool(x, lam, grid), (x, lam)), _pool_tiles_backward)


def max_entropy_pool(x, lam, window=(2, 2), strides=None, padding=(0, 0), ceil_mode=False):
    """Max-ent pooling: y = Σᵢ wᵢ xᵢ over a window, w = softmax(λ x) there.

    λ → 0 is average and λ → ∞ maximum pooling; padding never takes part.
    Kobayashi, "Global Feature Guided Local Pooling", ICCV 2019, equations (5)–(7).

    Args:
      x: features [B, H, W, C], any floating dtype.
      lam: λ, broadcastable to the output: [1, 1, 1, 1], [1, 1, 1, C], [B, 1, 1, 1], [B, 1, 1, C]
        or [B, H', W', C]; or a number.
      window, strides, padding: pairs of ints; strides default to the window.
      ceil_mode: round the number of windows up, as in PyTorch's pooling.

    Returns:
      [B, H', W', C] in the dtype of x; computed in float32.

    Raises:
      ValueError: x is not a floating [B, H, W, C], lam does not broadcast, or the window does not
        fit.

    >>> import jax.numpy as jnp
    >>> max_entropy_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), 0.0).tolist()
    [[[[1.5]]]]
    """
    require_feature_map(x)
    strides = window if strides is None else strides
    counts, pads = pool_padding(x.shape[1:3], window, strides, padding, ceil_mode)
    shape = (x.shape[0], *counts, x.shape[3])
    lam = at_least_float32(jnp.asarray(lam))
    lam = lam.reshape((1,) * 4) if lam.ndim == 0 else lam
    if lam.ndim != 4 or any(a not in (1, b) for a, b in zip(lam.shape, shape, strict=True)):
        raise ValueError(f"lam has shape {lam.shape}: it must broadcast to the output, {shape}.")
    # Under shard_map the sum makes of a λ that devices share one that varies over them, as its
    # gradient does.
    lam += jnp.zeros_like(lax.stop_gradient(x), lam.dtype, shape=(1, 1, 1, 1))
    grid = _Grid(x.shape[1:3], tuple(window), tuple(strides), counts, pads)
    pool = _pool_tiles if grid.strides == grid.window else _pool
    return narrow(pool(at_least_float32(x), lam, grid), x.dtype)


def adaptive_average_pool(x, shape):
    """Average pooling to a given size: cell i of m averages source rows ⌊i·s/m⌋ … ⌈(i+1)·s/m⌉ − 1.

    The size may be smaller or larger than that of x, as PyTorch's `adaptive_avg_pool2d`.

    Args:
      x: [B, H, W, C], any floating dtype.
      shape: (H', W').

    Returns:
      [B, H', W', C] in the dtype of x; computed in float32.

    Raises:
      ValueError: x is not a floating [B, H, W, C], or shape not a pair of positive ints.

    >>> import jax.numpy as jnp
    >>> adaptive_average_pool(jnp.arange(4.0).reshape(1, 4, 1, 1), (2, 1)).ravel().tolist()
    [0.5, 2.5]
    """
    require_feature_map(x)
    if len(shape) != 2 or not all(isinstance(s, int) and s >= 1 for s in shape):
        raise ValueError(f"shape is {shape!r}: give a pair of ints of at least 1.")
    rows = _adaptive_average_matrix(x.shape[1], shape[0])
    columns = _adaptive_average_matrix(x.shape[2], shape[1])
    y = jnp.einsum("ph,bhwc,qw->bpqc", rows, at_least_float32(x), columns, precision=PRECISION)
    return narrow(y, x.dtype)


def _adaptive_average_matrix(source, target):
    cells = np.arange(target)[:, None]
    at = np.arange(source)[None, :]
    member = (at >= cells * source // target) & (at < -(-(cells + 1) * source // target))
    return (member / member.sum(axis=1, keepdims=True)).astype(np.float32)
