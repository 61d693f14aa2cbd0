"""Functions of matrices whose intermediate results never leave a TPU's chip.

A primitive, and not `lax.platform_dependent`, so that the kernel is traced only where a program is
lowered for a TPU.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Float

from sop.ops.annotations import Array

# What a kernel makes of larger matrices leaves the 16 MiB that a TPU's compiler gives it.
_MOST_ROWS = 256
# Side of the tiles that a TPU multiplies.
_TILE = 128

_on_chip = Primitive("on_chip")
_on_chip.multiple_results = True


def on_chip(
    f: Callable[..., Sequence[jax.Array]],
    *matrices: Float[Array, "*batch n n"],
    results: int = 1,
) -> list[Float[jax.Array, "*batch n n"]]:
    """f of square matrices; on a TPU one kernel (Pallas) of each matrix by itself.

    There XLA would write each product of f to the device's memory and read it again; the kernel
    reads the matrices and writes the results. f runs as it is on other devices, for matrices larger
    than 256×256 or not in float32, and where `jit` divides a batch over devices itself, which it
    does outside `shard_map`. Derivatives are those of f.

    Args:
      f: matrices → sequence of matrices of the same shape and dtype, polynomials of them or
        derivatives of such: rows and columns of zeros, by which the kernel fills matrices up to
        multiples of 128, leave the rest as it is.
      matrices: of one shape and dtype.
      results: how many f gives.

    Raises:
      NotImplementedError: lowered for a TPU, f holds what Pallas has not, as products of precision
        'high': call f itself then, as `newton_schulz` does.
    """
    return _on_chip.bind(*matrices, f=f, results=results)


def _run(*matrices, f, results):
    return list(f(*matrices))


def kernel(*matrices: Any, f: Callable, results: int, interpret: bool = False) -> list[jax.Array]:
    """f as a kernel whose grid are the matrices; `interpret` runs it on any device, slowly."""
    *batch, size, _ = matrices[0].shape
    rows = -(-size // _TILE) * _TILE
    filled = [
        jnp.pad(each.reshape(-1, size, size), ((0, 0), (0, rows - size), (0, rows - size)))
        for each in matrices
    ]

    def of_one(*references):
        inputs, outputs = references[: len(filled)], references[len(filled) :]
        for reference, result in zip(outputs, f(*(each[0] for each in inputs)), strict=True):
            reference[0] = result

    block = pl.BlockSpec((1, rows, rows), lambda number: (number, 0, 0))
    found = pl.pallas_call(
        of_one,
        [jax.typeof(filled[0])] * results,
        grid=filled[0].shape[:1],
        in_specs=[block] * len(filled),
        out_specs=[block] * results,
        cost_estimate=pl.estimate_cost(f, *filled),
        interpret=interpret,
    )(*filled)
    return [each[:, :size, :size].reshape(*batch, size, size) for each in found]


def _types(*matrices, f, results):
    return [matrices[0].update(weak_type=False)] * results


def _batch(matrices, axes, *, f, results):
    size = next(a.shape[axis] for a, axis in zip(matrices, axes, strict=True) if axis is not None)
    matrices = [
        batching.bdim_at_front(a, axis, size) for a, axis in zip(matrices, axes, strict=True)
    ]
    return on_chip(f, *matrices, results=results), [0] * results


def _jvp(primals, tangents, *, f, results):
    tangents = tuple(map(ad.instantiate_zeros, tangents))
    return jax.jvp(lambda *a: list(f(*a)), tuple(primals), tangents)


_lower = mlir.lower_fun(_run, multiple_results=True)
_lower_kernel = mlir.lower_fun(kernel, multiple_results=True)


def _lower_for_tpu(context, *matrices, f, results):
    known = context.avals_in[0]
    sized = all(isinstance(n, int) for n in known.shape)  # not in a program for a batch of any size
    fits = sized and known.shape[-1] <= _MOST_ROWS and known.dtype == jnp.float32
    if fits and not any(known.sharding.spec):
        try:
            return _lower_kernel(context, *matrices, f=f, results=results)
        except NotImplementedError as error:
            # JAX tells only here that the compiler will divide the batch, which it cannot for a
            # kernel. All else that a kernel lacks is a fault of f, and is not hidden.
            if "automatically partitioned" not in str(error):
                raise
    return _lower(context, *matrices, f=f, results=results)


_on_chip.def_impl(_run)
_on_chip.def_abstract_eval(_types)
mlir.register_lowering(_on_chip, _lower)
mlir.register_lowering(_on_chip, _lower_for_tpu, platform="tpu")
ad.primitive_jvps[_on_chip] = _jvp
batching.primitive_batchers[_on_chip] = _batch
