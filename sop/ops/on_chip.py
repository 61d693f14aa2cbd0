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
    """f of symmetric matrices; on a TPU one kernel (Pallas) of each matrix by itself.

    There XLA would write each product of f to the device's memory and read it again; the kernel
    reads the matrices and writes the results. It takes float32 up to 256×256: f runs as it is for
    others, and on other devices. Derivatives are those of f.

    Args:
      f: matrices → sequence of matrices of the same shape and dtype, polynomials of them or
        derivatives of such: rows and columns of zeros, by which the kernel fills matrices up to
        multiples of 128, leave the rest as it is.
      matrices: of one shape and dtype.
      results: how many f gives.
    """
    return _on_chip.bind(*matrices, f=f, results=results)


def _run(*matrices, f, results):
    return list(f(*matrices))


def _run_on_tpu(*matrices, f, results):
    shape = matrices[0].shape
    known = all(isinstance(n, int) for n in shape)  # not in a program for a batch of any size
    fits = known and shape[-1] <= _MOST_ROWS and matrices[0].dtype == jnp.float32
    return list((kernel if fits else _run)(*matrices, f=f, results=results))


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


_on_chip.def_impl(jax.jit(_run, static_argnames=("f", "results")))
_on_chip.def_abstract_eval(_types)
mlir.register_lowering(_on_chip, mlir.lower_fun(_run, multiple_results=True))
mlir.register_lowering(_on_chip, mlir.lower_fun(_run_on_tpu, multiple_results=True), platform="tpu")
ad.primitive_jvps[_on_chip] = _jvp
batching.primitive_batchers[_on_chip] = _batch
