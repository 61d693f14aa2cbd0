"""Pullbacks written by hand that leave forward mode, and repeated derivatives, as they were.

`jax.custom_vjp` takes forward mode away. Here the derivative of a function is one linear operation,
which runs forwards as the derivative of what is written, and backwards as the pullback.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from sop.ops.annotations import Array

_linear = Primitive("linear")
_linear.multiple_results = True


def linear(
    there: Callable,
    back: Callable,
    arrays: Sequence[Any],
    residuals: Sequence[Any] = (),
    like: Sequence[Any] | None = None,
) -> list[Array]:
    """`there`(residuals, arrays), a list of arrays that is linear in `arrays`, with its transpose.

    Args:
      there: (residuals, arrays) → list of arrays, linear in the second argument.
      back: (residuals, cotangents) → list of arrays as `arrays`, linear likewise. Both are
        themselves differentiable by residuals, which gives the derivatives of higher order.
      arrays: what it is linear in.
      residuals: what it may depend on in any way, and what reverse mode keeps.
      like: arrays of the types of the results. Without it `there` is traced to find them, which
        takes as long as tracing what it is the derivative of, or several times as long.
    """
    types = None if like is None else tuple(_type(jax.typeof(array)) for array in like)
    return _bind(there, back, arrays, residuals, types)


def _bind(there, back, arrays, residuals, types):
    kept = len(residuals)
    return _linear.bind(*residuals, *arrays, there=there, back=back, kept=kept, types=types)


def _type(found, weak_type=False):
    """Shape, dtype and sharding alone."""
    return ShapedArray(found.shape, found.dtype, weak_type=weak_type, sharding=found.sharding)


def with_pullback(f: Callable[..., jax.Array], pullback: Callable) -> Callable[..., jax.Array]:
    """f, whose reverse mode is `pullback` and keeps the arguments of f alone.

    Args:
      f: arrays → array; forward mode is that of f as written.
      pullback: (*arrays, cotangent) → tuple of the cotangents of all arrays.
    """

    def there(primals, tangents):
        return [jax.jvp(f, tuple(primals), tuple(tangents))[1]]

    def back(primals, cotangents):
        return list(pullback(*primals, *cotangents))

    @jax.custom_jvp
    def function(*primals):
        return f(*primals)

    @function.defjvp
    def _(primals, tangents):
        y = function(*primals)
        [tangent] = linear(there, back, tangents, primals, like=[y])
        return y, tangent

    return function


def _run(*operands, there, back, kept, types):
    return there(list(operands[:kept]), list(operands[kept:]))


def _types(*operands, there, back, kept, types):
    # What results vary over, under shard_map, is not in `types`: tracing finds it.
    if types is not None and all(_type(a, a.weak_type) == a for a in operands):
        return list(types)
    return jax.make_jaxpr(there)(list(operands[:kept]), list(operands[kept:])).out_avals


def _jvp(primals, tangents, *, there, back, kept, types):
    """The operation on the tangents of `arrays`, and its derivative by the residuals."""
    residuals, arrays = list(primals[:kept]), list(primals[kept:])
    changes = [ad.instantiate_zeros(tangent) for tangent in tangents]
    y = _bind(there, back, arrays, residuals, types)
    terms = []
    if not _zero(tangents[kept:]):
        terms.append(_bind(there, back, changes[kept:], residuals, types))
    if not _zero(tangents[:kept]):
        by_residuals = jax.jvp(lambda r: there(r, arrays), (residuals,), (changes[:kept],))
        terms.append(by_residuals[1])
    return y, [sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True)]


def _zero(tangents):
    return all(isinstance(tangent, ad.Zero) for tangent in tangents)


def _transpose(cotangents, *operands, there, back, kept, types):
    cotangents = [ad.instantiate_zeros(cotangent) for cotangent in cotangents]
    # Of arrays that are known, as tangents of zero are, no cotangent is wanted.
    wanted = [ad.is_undefined_primal(array) for array in operands[kept:]]
    arrays = zip(operands[kept:], wanted, strict=True)
    types = tuple(_type(a.aval if w else jax.typeof(a)) for a, w in arrays)
    found = _bind(back, there, cotangents, operands[:kept], types)
    return [None] * kept + [a if w else None for a, w in zip(found, wanted, strict=True)]


def _batch(operands, axes, *, there, back, kept, types):
    size = next(a.shape[axis] for a, axis in zip(operands, axes, strict=True) if axis is not None)
    # An array without the axis gets it here, so that the transpose of this sums over it.
    arrays = [
        batching.bdim_at_front(array, axis, size)
        for array, axis in zip(operands[kept:], axes[kept:], strict=True)
    ]
    there, back = (jax.vmap(f, (list(axes[:kept]), 0)) for f in (there, back))
    y = _bind(there, back, arrays, operands[:kept], None)
    return y, [0] * len(y)


_linear.def_impl(_run)
_linear.def_abstract_eval(_types)
mlir.register_lowering(_linear, mlir.lower_fun(_run, multiple_results=True))
ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _batch
