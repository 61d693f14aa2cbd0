"""Which precision values and products have, and the way into and out of float16.

Second-order statistics leave the range of float16 (±65504) at once.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from sop.ops.annotations import Array
from sop.ops.derivatives import linear

# Of products of float32, as `jax.lax.Precision`.
Precision = Literal["highest", "high", "default"]


def einsum(subscripts: str, *operands: Any, precision: Precision = "highest") -> jax.Array:
    """`jnp.einsum` with factors as they are.

    On accelerators 'high' and 'default' round those of a float32 product, see
    docs/accelerators.md.

    >>> einsum("bc,c->b", jnp.ones((1, 2)), jnp.ones(2)).tolist()
    [2.0]
    """
    return jnp.einsum(subscripts, *operands, precision=precision)


def narrow(x: Float[Array, "*shape"], dtype) -> Float[jax.Array, "*shape"]:
    """Cast to `dtype`; in float16, numbers beyond its largest become that one, and ∞ stays ∞.

    >>> narrow(jnp.array([1e6, -1e6, jnp.inf]), jnp.float16).tolist()
    [65504.0, -65504.0, inf]
    """
    if dtype == jnp.float16 and x.dtype != jnp.float16:
        largest = float(jnp.finfo(jnp.float16).max)
        x = jnp.where(jnp.isinf(x), x, jnp.clip(x, -largest, largest))
    return x.astype(dtype)


def widen(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """float16 to float32, everything else unchanged.

    The gradient comes back as float16 by `narrow`: large entries saturate instead of turning into
    ∞, which the next product with zero would make NaN.

    >>> widen(jnp.ones(2, jnp.float16)).dtype, widen(jnp.ones(2, jnp.bfloat16)).dtype
    (dtype('float32'), dtype(bfloat16))
    """
    if x.dtype != jnp.float16:
        return x
    [x] = linear(
        lambda _, arrays: [a.astype(jnp.float32) for a in arrays],
        lambda _, cotangents: [narrow(a, jnp.float16) for a in cotangents],
        [x],
    )
    return x


def at_least_float32(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x in float32, or unchanged where it is wider.

    >>> at_least_float32(jnp.ones(2, jnp.bfloat16)).dtype
    dtype('float32')
    """
    x = widen(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def magnitude(x: Float[Array, "*shape"], axis, least: float = 1.0) -> jax.Array:
    """The largest power of two up to the largest |x| along axes, at least `least`; axes of 1 stay.

    Divided by it, x has squares and sums in range, whatever its size, and loses no bit. It counts
    as a constant in gradients: use it where it cancels out.

    >>> magnitude(jnp.array([3.0, -5.0]), 0).tolist(), magnitude(jnp.zeros(2), 0).tolist()
    ([4.0], [1.0])
    """
    largest = lax.stop_gradient(jnp.abs(x).max(axis, keepdims=True))
    # frexp would turn infinity into a finite power, and so would hide it.
    return jnp.exp2(jnp.floor(jnp.log2(jnp.maximum(largest, least))))
