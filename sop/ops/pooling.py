"""Local pooling: windows of maximum entropy, maximum, average; adaptive average."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from sop.checks import Count, NotNegative, check
from sop.errors import UsageError
from sop.ops.annotations import Array, FeatureMap
from sop.ops.arguments import require_feature_map
from sop.ops.derivatives import with_pullback
from sop.ops.platform import interleave
from sop.ops.precision import at_least_float32, einsum, narrow, widen

Pair = tuple[int, ...]  # of height and width


def pool_padding(
    shape: Pair, window: Pair, strides: Pair, padding: Pair = (0, 0), ceil_mode: bool = False
) -> tuple[Pair, tuple[Pair, ...]]:
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
      UsageError: a pair of numbers that PyTorch's pooling would refuse as well.

    >>> pool_padding((112, 112), (3, 3), (2, 2), (1, 1))
    ((56, 56), ((1, 0), (1, 0)))
    """
    check("window", window, tuple[Count, Count])
    check("strides", strides, tuple[Count, Count])
    check("padding", padding, tuple[NotNegative, NotNegative])
    counts, pads = [], []
    for size, k, stride, p in zip(shape, window, strides, padding, strict=True):
        if 2 * p > k:
            raise UsageError(f"padding is {p}: it must be at most half of the window, {k}.")
        room = size + 2 * p - k
        count = (-(-room // stride) if ceil_mode else room // stride) + 1
        if ceil_mode and (count - 1) * stride >= size + p:
            count -= 1
        if count < 1:
            raise UsageError(f"window is {k} for {size} positions padded by {p}: shrink it.")
        counts.append(count)
        pads.append((p, (count - 1) * stride + k - size - p))
    return tuple(counts), tuple(pads)


@dataclasses.dataclass(frozen=True)
class _Grid:
    """Where windows lie: the arguments of `pool_padding` and what it found.

    For the way back the image is cut into blocks as large as the strides: the entries at one place
    of all blocks lie among the windows in the same way.
    """

    size: Pair
    window: Pair
    strides: Pair
    counts: Pair
    pads: tuple[Pair, ...]

    @property
    def blocks(self):
        """How many, the last ones perhaps beyond the image's end."""
        return tuple(-(-size // s) for size, s in zip(self.size, self.strides, strict=True))

    def windows(self, x):
        """For each place in the window: its entries [B, H', W', C], and which are inside x.

        The second is [1, H', W', 1], or None where all are.
        """
        padded = _pad(x, self.pads)
        for place in np.ndindex(*self.window):
            starts = zip(place, self.counts, self.strides, strict=True)
            rows, columns = (slice(i, i + (n - 1) * stride + 1, stride) for i, n, stride in starts)
            yield _wide(padded[:, rows, columns]), self._inside(place)

    def _inside(self, place):
        inside = []
        for axis in range(2):
            at = np.arange(self.counts[axis]) * self.strides[axis] + place[axis]
            at -= self.pads[axis][0]
            inside.append((at >= 0) & (at < self.size[axis]))
        inside = np.logical_and.outer(*inside)[None, :, :, None]
        return None if inside.all() else inside

    def _steps(self, place):
        """Per axis, how far from a block windows lie that hold its entry at this place."""
        at = (i + low for i, (low, _) in zip(place, self.pads, strict=True))
        axes = zip(at, self.window, self.strides, strict=True)
        return [range((i - k) // s + 1, i // s + 1) for i, k, s in axes]

    def places(self, x):
        """For each place in the block: its entries [B, blocks, blocks, C], and their windows.

        The second are steps (rows, columns) for `step`.
        """
        axes = zip(self.blocks, self.strides, self.size, strict=True)
        padded = _pad(x, [(0, n * s - size) for n, s, size in axes])
        for place in np.ndindex(*self.strides):
            rows, columns = (slice(i, None, s) for i, s in zip(place, self.strides, strict=True))
            yield _wide(padded[:, rows, columns]), list(itertools.product(*self._steps(place)))

    def around(self, a):
        """Of windows, [B, H', W', C], with zeros where `step` finds none."""
        last = self._steps(tuple(s - 1 for s in self.strides))
        axes = zip(self._steps((0, 0)), last, self.blocks, self.counts, strict=True)
        return _pad(a, [(-few.start, most.stop - 1 + n - count) for few, most, n, count in axes])

    def step(self, around, steps):
        """What `around` has so many steps from each block: [B, blocks, blocks, C]."""
        starts = (i - few.start for i, few in zip(steps, self._steps((0, 0)), strict=True))
        rows, columns = (slice(i, i + n) for i, n in zip(starts, self.blocks, strict=True))
        return around[:, rows, columns]

    def within(self, place, steps):
        """Where in the window, so many steps from each block, the block's entry at `place` is."""
        axes = zip(place, steps, self.pads, self.strides, strict=True)
        return tuple(i + low - step * s for i, step, (low, _), s in axes)

    def join(self, parts):
        """The image [B, H, W, C] of what is at each place in the block."""
        whole = interleave(parts, self.strides)
        return whole[:, : self.size[0], : self.size[1]]


def _pad(x, pads):
    """x with zeros around height and width, or without rows and columns where negative."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)])


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _only(chosen, values, otherwise):
    return values if chosen is None else jnp.where(chosen, values, otherwise)


def _difference(a, b):
    """a − b, at most the largest number: ∞ times a weight of 0 would be NaN."""
    largest = jnp.finfo(a.dtype).max
    return jnp.clip(a - b, -largest, largest)


def _reference(x, lam, grid):
    """The entry of each window that the softmax peaks at: its largest, smallest for λ < 0.

    NaN where an entry is infinite, which its difference from the peak would not be.
    """
    sign = jnp.where(lam < 0, -1.0, 1.0)
    lowest = jnp.finfo(lam.dtype).min
    entries = [_only(inside, sign * place, lowest) for place, inside in grid.windows(x)]
    peak, least = (functools.reduce(f, entries) for f in (jnp.maximum, jnp.minimum))
    return lax.stop_gradient(sign * jnp.where(least < lowest, jnp.nan, peak))


def _sum(term, x, reference, grid):
    """Σ term(d) over windows, d = x − reference."""
    return functools.reduce(
        jnp.add,
        (
            _only(inside, term(_only(inside, _difference(place, reference), 0)), 0)
            for place, inside in grid.windows(x)
        ),
    )


def _statistics(x, lam, grid):
    """Of windows, d = x − reference: the reference, log Σ exp(λ d), and y.

    Every sum here and in `_pool_pullback` writes its exponentials in a way of its own: those that
    two sums share XLA writes to memory on CPU, which takes longer than to compute them again.
    """
    reference = _reference(x, lam, grid)
    log_total = jnp.log(_sum(lambda d: jnp.exp(lam * d), x, reference, grid))
    mean = _sum(lambda d: jnp.exp(lam * d - log_total) * d, x, reference, grid)
    return reference, log_total, reference + mean


def _pool(x, lam, grid):
    return with_pullback(
        lambda x, lam: _statistics(x, lam, grid)[2].astype(x.dtype),
        functools.partial(_pool_pullback, grid=grid),
    )(x, lam)


def _pool_pullback(x, lam, cotangent, grid):
    """With ȳ the cotangent: ∂x = Σ ȳ w (1 + λ(d − Σ w d)) over windows, ∂λ = ȳ Σ w (d − Σ w d)²."""
    reference, log_total, y = _statistics(x, lam, grid)
    mean = y - reference  # not from `_statistics`: its sum would then be shared, as above

    def deviation(d):
        return jnp.exp((lam * d - log_total) / 2) * (d - mean)

    variance = _sum(lambda d: deviation(d) ** 2, x, reference, grid)
    summed = [axis for axis in range(4) if lam.shape[axis] < cotangent.shape[axis]]
    to_lam = (_wide(cotangent) * variance).sum(summed, keepdims=True)

    alike = lam.shape[1:3] == (1, 1)
    wide_lam = jnp.broadcast_to(lam, (lam.shape[0], *grid.counts, lam.shape[3]))
    scales = lam if alike else grid.around(wide_lam)
    statistics = [grid.around(a) for a in (cotangent, reference, log_total, mean)]
    parts = []
    for entries, windows in grid.places(x):
        gradient = jnp.zeros_like(entries)
        for steps in windows:
            pulled, peak, log_sum, centre = (grid.step(a, steps) for a in statistics)
            scale = lam if alike else grid.step(scales, steps)
            # Where there is no window the cotangent is zero; entries beyond the peak are there
            # alone, those far below have no weight: bounds keep infinities out. At the peak
            # jnp.minimum would halve the second derivative.
            exponent = scale * _difference(entries, peak)
            exponent = jnp.maximum(jnp.where(exponent > 0, 0, exponent), -1e3)
            weight = jnp.exp(exponent - log_sum)
            gradient += _wide(pulled) * weight * (1 + exponent - scale * centre)
        parts.append(gradient.astype(x.dtype))
    return grid.join(parts), to_lam


def max_entropy_pool(
    x: FeatureMap,
    lam: Float[Array, "..."] | float,
    window: Pair = (2, 2),
    strides: Pair | None = None,
    padding: Pair = (0, 0),
    ceil_mode: bool = False,
) -> Float[jax.Array, "b _ _ c"]:
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
      UsageError: x is not a floating [B, H, W, C], lam does not broadcast, or the window does not
        fit.

    >>> import jax.numpy as jnp
    >>> max_entropy_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), 0.0).tolist()
    [[[[1.5]]]]
    """
    require_feature_map(x)
    strides = window if strides is None else strides
    counts, pads = pool_padding(x.shape[1:3], window, strides, padding, ceil_mode)
    shape = (x.shape[0], *counts, x.shape[3])
    dtype, x = x.dtype, widen(x)
    lam = at_least_float32(jnp.asarray(lam)).astype(jnp.promote_types(x.dtype, jnp.float32))
    lam = lam.reshape((1,) * 4) if lam.ndim == 0 else lam
    if lam.ndim != 4 or any(a not in (1, b) for a, b in zip(lam.shape, shape, strict=True)):
        raise UsageError(f"lam has shape {lam.shape}: it must broadcast to the output, {shape}.")
    # Under shard_map the sum makes of a λ that devices share one that varies over them, as its
    # gradient does.
    lam += jnp.zeros_like(lax.stop_gradient(x), lam.dtype, shape=(1, 1, 1, 1))
    grid = _Grid(x.shape[1:3], tuple(window), tuple(strides), counts, pads)
    return narrow(_pool(x, lam, grid), dtype)


def max_pool(
    x: FeatureMap,
    window: Pair = (2, 2),
    strides: Pair | None = None,
    padding: Pair = (0, 0),
    ceil_mode: bool = False,
) -> Float[jax.Array, "b _ _ c"]:
    """Maximum pooling: y = max of a window; padding never takes part.

    The gradient is that of the window's first maximum, row by row. On CPU, where XLA's way back
    takes several times as long, each position collects it from the windows it lies in.

    Args:
      x: features [B, H, W, C], any floating dtype.
      window, strides, padding: pairs of ints; strides default to the window.
      ceil_mode: round the number of windows up, as in PyTorch's pooling.

    Returns:
      [B, H', W', C] in the dtype of x.

    Raises:
      UsageError: x is not a floating [B, H, W, C], or the window does not fit.

    >>> import jax.numpy as jnp
    >>> max_pool(jnp.arange(4.0).reshape(1, 2, 2, 1)).tolist()
    [[[[3.0]]]]
    """
    require_feature_map(x)
    strides = window if strides is None else strides
    counts, pads = pool_padding(x.shape[1:3], window, strides, padding, ceil_mode)
    grid = _Grid(x.shape[1:3], tuple(window), tuple(strides), counts, pads)

    def pool(x):
        around = ((0, 0), *((low, max(high, 0)) for low, high in pads), (0, 0))
        lowest = np.asarray(-np.inf, x.dtype)
        return lax.reduce_window(x, lowest, lax.max, (1, *window, 1), (1, *strides, 1), around)

    def maxima(x):
        entries = (_only(inside, place, -jnp.inf) for place, inside in grid.windows(x))
        return functools.reduce(jnp.maximum, entries).astype(x.dtype)

    on_cpu = with_pullback(maxima, functools.partial(_max_pool_pullback, grid=grid))
    return lax.platform_dependent(x, cpu=on_cpu, default=pool)


def _max_pool_pullback(x, cotangent, grid):
    """∂x = Σ ȳ over the windows whose first maximum an entry is."""
    highest, first = -jnp.inf, 0
    for place, (entries, inside) in enumerate(grid.windows(x), 1):
        higher = _only(inside, entries, -jnp.inf) > highest
        highest, first = jnp.where(higher, entries, highest), jnp.where(higher, place, first)
    pulled, first = grid.around(cotangent), grid.around(first.astype(jnp.int16))
    places = np.arange(1, 1 + math.prod(grid.window)).reshape(grid.window)
    parts = []
    for place, (entries, windows) in zip(np.ndindex(*grid.strides), grid.places(x), strict=True):
        gradient = jnp.zeros_like(entries)
        for steps in windows:
            chosen = grid.step(first, steps) == places[grid.within(place, steps)]
            gradient += jnp.where(chosen, _wide(grid.step(pulled, steps)), 0)
        parts.append(gradient.astype(x.dtype))
    return (grid.join(parts),)


def adaptive_average_pool(x: FeatureMap, shape: Pair) -> Float[jax.Array, "b _ _ c"]:
    """Average pooling to a given size: cell i of m averages source rows ⌊i·s/m⌋ … ⌈(i+1)·s/m⌉ − 1.

    The size may be smaller or larger than that of x, as PyTorch's `adaptive_avg_pool2d`.

    Args:
      x: [B, H, W, C], any floating dtype.
      shape: (H', W').

    Returns:
      [B, H', W', C] in the dtype of x; computed in float32.

    Raises:
      UsageError: x is not a floating [B, H, W, C], or shape not a pair of positive ints.

    >>> import jax.numpy as jnp
    >>> adaptive_average_pool(jnp.arange(4.0).reshape(1, 4, 1, 1), (2, 1)).ravel().tolist()
    [0.5, 2.5]
    """
    require_feature_map(x)
    check("shape", shape, tuple[Count, Count])
    rows = _adaptive_average_matrix(x.shape[1], shape[0])
    columns = _adaptive_average_matrix(x.shape[2], shape[1])
    y = einsum("ph,bhwc,qw->bpqc", rows, at_least_float32(x), columns)
    return narrow(y, x.dtype)


def _adaptive_average_matrix(source, target):
    cells = np.arange(target)[:, None]
    at = np.arange(source)[None, :]
    member = (at >= cells * source // target) & (at < -(-(cells + 1) * source // target))
    return (member / member.sum(axis=1, keepdims=True)).astype(np.float32)
