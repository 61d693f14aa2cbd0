"""What is done for speed on one kind of device alone, and what it gains there.

`lax.platform_dependent` chooses when a program is lowered for its device: under
`jax.default_device`, and exported for a machine that this one is not, it is the right one.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from sop.ops.annotations import Array, FeatureMap
from sop.ops.derivatives import with_pullback


def in_halves(f: Callable[..., jax.Array], *arrays: Any) -> jax.Array:
    """f over a batch; on CPU over its two halves, so that XLA runs operations of both at once.

    It runs a batched product of small matrices on one core; two halves use two.
    """

    def halves(*arrays):
        size = arrays[0].shape[0]
        parts = [
            f(*(lax.slice_in_dim(a, start, stop) for a in arrays))
            for start, stop in ((0, size // 2), (size // 2, size))
        ]
        return jnp.concatenate(parts)

    return lax.platform_dependent(*arrays, cpu=halves, default=f)


def in_turns(f: Callable[..., jax.Array], *arrays: Any) -> jax.Array:
    """f over a first axis; on CPU over one half of it and then the other, in a loop.

    What a loop gives is in memory. Else XLA may compute f again for each entry of what is made of
    it, in another shape: what f does once for many channels is then done for each.
    """

    def turns(*arrays):
        size = len(arrays[0])
        half = -(-size // 2)
        filled = (jnp.pad(a, [(0, 2 * half - size)] + [(0, 0)] * (a.ndim - 1)) for a in arrays)
        y = lax.map(lambda a: f(*a), tuple(a.reshape(2, half, *a.shape[1:]) for a in filled))
        return y.reshape(2 * half, *y.shape[2:])[:size]

    return lax.platform_dependent(*arrays, cpu=turns, default=f)


def interleave(
    parts: Sequence[FeatureMap], strides: tuple[int, ...]
) -> Float[jax.Array, "b _ _ c"]:
    """Maps [B, h, w, C] of each place in a block [s, t], row by row → [B, hs, wt, C].

    A TPU's compiler writes what is padded, stacked or repeated between rows and columns to memory,
    several times. There each entry chooses its part; the barrier keeps the reshape, which would
    undo that, out of the choice: parts are read once, the map is written once.
    """
    if len(parts) == 1:
        return parts[0]
    batch, height, width, channels = parts[0].shape
    shape = (batch, height * strides[0], width * strides[1], channels)

    def stack(*parts):
        lines = [jnp.stack(parts[i : i + strides[1]], 3) for i in range(0, len(parts), strides[1])]
        return jnp.stack(lines, 2).reshape(shape)

    def choose(*parts):
        rows, columns = (
            lax.broadcasted_iota(jnp.int32, (strides[0], 1, strides[1], 1), i) for i in (0, 2)
        )
        place = rows * strides[1] + columns
        whole = parts[0][:, :, None, :, None]
        for number, part in enumerate(parts[1:], 1):
            whole = jnp.where(place == number, part[:, :, None, :, None], whole)
        return lax.optimization_barrier(whole).reshape(shape)

    return lax.platform_dependent(*parts, cpu=stack, default=choose)


def multiply(
    x: Float[Array, "*shape c"], kernel: Float[Array, "c d"]
) -> Float[jax.Array, "*shape d"]:
    """x W over the last axis of x, summed in at least float32.

    In half precision the cotangent is rounded to the type of the factors: products of float32 and
    bfloat16 have none of an accelerator's units for half precision to run on. On CPU, where XLA's
    product is fast depends on the shape of its factors, see `_multiply_on_cpu`.
    """
    if jnp.finfo(x.dtype).bits < 32:
        return _multiply_halves(x, kernel)
    return lax.platform_dependent(
        x, kernel, cpu=_multiply_on_cpu, default=partial(_contract, axis=0)
    )


def convolve(
    x: FeatureMap,
    kernel: Float[Array, "_ _ _ d"],
    strides,
    padding,
    *,
    lhs_dilation=(1, 1),
    rhs_dilation=(1, 1),
    feature_group_count: int = 1,
    **options,
) -> Float[jax.Array, "b _ _ d"]:
    """`lax.conv_general_dilated` of NHWC and HWIO, with what is faster on CPU there.

    There 1×1 convolutions are products, and the gradient of a kernel is summed over parts of large
    maps, see `_gradient_of_kernel`.
    """

    def plain(x, kernel, padding=padding):
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            feature_group_count=feature_group_count,
            **options,
        )

    def product(x, kernel):
        x = x[:, :: strides[0], :: strides[1]]
        return _multiply_on_cpu(x, kernel[0, 0]).astype(x.dtype)

    def pullback(x, kernel, cotangent):
        of_x = jax.vjp(lambda x: plain(x, kernel), x)[1](cotangent)[0]
        pads = padding
        if isinstance(padding, str):
            pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
        valid = partial(plain, padding="VALID")
        return of_x, _gradient_of_kernel(valid, x, kernel, cotangent, strides, pads)

    if feature_group_count > 1 or (*lhs_dilation, *rhs_dilation) != (1, 1, 1, 1):
        return plain(x, kernel)
    if kernel.shape[:2] == (1, 1) and (padding in ("SAME", "VALID") or not np.any(padding)):
        on_cpu = product
    elif _is_large(jax.eval_shape(plain, x, kernel).shape[:3]):
        on_cpu = with_pullback(plain, pullback)
    else:
        return plain(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)


# Positions of a map beyond which XLA's gradient of a kernel is slow on CPU, and of the parts in
# which it is not (benchmarks/cpu_operations.py).
_MANY_POSITIONS = 3200
_POSITIONS_OF_A_PART = 1200
_MOST_PARTS = 32  # each is compiled


def _is_large(shape: Sequence[Any]) -> bool:
    # A program for a batch of any size is not written for parts of it.
    return all(isinstance(n, int) for n in shape) and math.prod(shape) >= _MANY_POSITIONS


def _gradient_of_kernel(valid, x, kernel, cotangent, strides, pads):
    """Of a convolution, summed over parts of its output: some images, or some rows of one.

    Args:
      valid: (x, kernel) → output, the convolution without padding.
      pads: ((top, bottom), (left, right)), which may be negative.
    """
    batch, height, width = cotangent.shape[:3]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)))
    size = max(_POSITIONS_OF_A_PART, -(-batch * height * width // _MOST_PARTS))
    images = max(1, size // (height * width))
    parts = -(-height * width // size)  # of an image
    rows = -(-height // parts)
    total = jnp.zeros(kernel.shape, jnp.promote_types(kernel.dtype, jnp.float32))

    @jax.jit  # traced once for all parts of one shape
    def of_part(seen, g):
        # Else XLA computes with the whole, of which these are views.
        seen, g = lax.optimization_barrier((seen, g))
        return jax.linear_transpose(partial(valid, seen), kernel)(g)[0]

    for first, top in itertools.product(range(0, batch, images), range(0, height, rows)):
        some = slice(first, first + images)
        g = cotangent[some, top : top + rows]
        seen = x[some, top * strides[0] : (top + g.shape[1] - 1) * strides[0] + kernel.shape[0]]
        total += of_part(seen, g)
    return total.astype(kernel.dtype)


def _contract(x, kernel, axis):
    """Σ over the last axis of x and the given one of the kernel."""
    return lax.dot_general(
        x,
        kernel,
        (((x.ndim - 1,), (axis,)), ((), ())),
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )


def _halves_pullback(x, kernel, cotangent):
    cotangent = cotangent.astype(x.dtype)
    others = tuple(range(x.ndim - 1))
    of_kernel = lax.dot_general(
        x, cotangent, ((others, others), ((), ())), preferred_element_type=jnp.float32
    )
    return _contract(cotangent, kernel, 1).astype(x.dtype), of_kernel.astype(kernel.dtype)


_multiply_halves = with_pullback(partial(_contract, axis=0), _halves_pullback)


def _multiply_on_cpu(x, kernel):
    # For the gradient of W of more than two axes XLA would first write a transposed cotangent.
    y = _multiply_rows(x.reshape(-1, x.shape[-1]), kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[1])


@jax.custom_jvp
def _multiply_rows(x, kernel):
    return _contract(x, kernel, 0)


@_multiply_rows.defjvp
def _multiply_rows_jvp(primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    axis = 0
    if kernel.shape[0] > kernel.shape[1]:
        # The transposed tangent has a transposed cotangent, for which XLA multiplies faster.
        # Without the barrier it would fold the transposition back.
        dkernel, axis = lax.optimization_barrier(dkernel.T), 1
    return _multiply_rows(x, kernel), _contract(dx, kernel, 0) + _contract(x, dkernel, axis)
