"""Local pooling: windows of maximum entropy, maximum, average; adaptive average."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from sop.ops.covariance import PRECISION, at_least_float32, require_feature_map


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


def _windows(x, window, strides, counts, pads, fill):
    """The window's positions as a list of [B, H', W', C], one per place in the window."""
    x = lax.pad(x, jnp.asarray(fill, x.dtype), ((0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)))
    places = []
    for i in range(window[0]):
        for j in range(window[1]):
            stop = (i + (counts[0] - 1) * strides[0] + 1, j + (counts[1] - 1) * strides[1] + 1)
            places.append(x[:, i : stop[0] : strides[0], j : stop[1] : strides[1]])
    return places


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
    if lam.ndim not in (0, 4) or jnp.broadcast_shapes(lam.shape, shape) != shape:
        raise ValueError(f"lam has shape {lam.shape}: it must broadcast to the output, {shape}.")
    places = _windows(at_least_float32(x), window, strides, counts, pads, 0)
    inside = _windows(np.ones((1, *x.shape[1:3], 1), bool), window, strides, counts, pads, False)
    # For λ < 0 the softmax peaks at the minimum, so the reference below is that of −x.
    sign = jnp.where(lam < 0, -1.0, 1.0)
    lowest = jnp.finfo(places[0].dtype).min
    reference = places[0] * 0 + lowest
    for place, valid in zip(places, inside, strict=True):
        reference = jnp.maximum(reference, jnp.where(valid, sign * place, lowest))
    reference = lax.stop_gradient(sign * reference)
    total = weighted = 0.0
    for place, valid in zip(places, inside, strict=True):
        difference = jnp.where(valid, place - reference, 0)
        e = jnp.where(valid, jnp.exp(lam * difference), 0)
        total += e
        weighted += e * difference
    return (reference + weighted / total).astype(x.dtype)


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
    return y.astype(x.dtype)


def _adaptive_average_matrix(source, target):
    cells = np.arange(target)[:, None]
    at = np.arange(source)[None, :]
    member = (at >= cells * source // target) & (at < -(-(cells + 1) * source // target))
    return (member / member.sum(axis=1, keepdims=True)).astype(np.float32)
