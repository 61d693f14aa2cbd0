"""What `sop.ops` does in its own way on CPU, beside what XLA does there, in turns.

`python benchmarks/cpu_operations.py` prints a markdown table: gradients of convolutions' kernels,
`sop.ops.platform.convolve` beside `lax.conv_general_dilated`, and maximum pooling with its
gradient, `sop.ops.max_pool` beside `lax.reduce_window`. A ratio is the median of the ratios of
neighbours, its spread their quartiles.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from layers import interleaved, keep_freed_memory
from tables import RATIO, print_header, print_row, quartiles

from sop import ops
from sop.ops.platform import convolve

COLUMNS = {"what": "{}", "input": "{}", "ms": "{:.1f}", "XLA's ms": "{:.1f}", "ratio": RATIO}
# Batch, height and width, channels in and out, window, strides.
CONVOLUTIONS = (
    (4, 224, 3, 64, 7, 2),
    (4, 56, 64, 64, 3, 1),
    (16, 28, 128, 128, 3, 1),
    (16, 14, 256, 256, 3, 1),
    (2, 40, 256, 256, 3, 1),
    (1, 96, 256, 256, 3, 1),
)
POOLS = (
    (4, 112, 64, 3, 2, 1),
    (4, 112, 64, 2, 2, 0),
)  # batch, size, channels, window, strides, pad


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))


def run_of(f, *arguments, forward: bool):
    """A run of f's pullback to its first argument, and with `forward` of f as well."""

    def step(cotangent, first, *rest):
        y, pullback = jax.vjp(lambda first: f(first, *rest), first)
        return (y, pullback(cotangent)) if forward else pullback(cotangent)

    given = normal(*jax.eval_shape(f, *arguments).shape), *arguments
    compiled = jax.jit(step)
    return lambda: jax.block_until_ready(compiled(*given))


def convolved(convolution, strides, kernel, x):
    pads = [(size // 2, size // 2) for size in kernel.shape[:2]]
    how = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    return convolution(x, kernel, (strides, strides), pads, **how)


def convolutions():
    """(what, input, [a run of ours, a run of XLA's])"""
    for batch, size, channels, features, window, strides in CONVOLUTIONS:
        given = normal(window, window, channels, features), normal(batch, size, size, channels)
        shown = f"{batch}×{size}×{size}×{channels} → {features}"
        functions = (partial(convolved, f, strides) for f in (convolve, lax.conv_general_dilated))
        runs = [run_of(f, *given, forward=False) for f in functions]
        yield f"kernel {window}×{window}/{strides}, gradient", shown, runs


def pools():
    for batch, size, channels, window, strides, padding in POOLS:
        windows, steps, pads = (window, window), (strides, strides), (padding, padding)
        functions = (
            partial(ops.max_pool, window=windows, strides=steps, padding=pads),
            partial(
                nn.max_pool, window_shape=windows, strides=steps, padding=((padding,) * 2,) * 2
            ),
        )
        x = jax.nn.relu(normal(batch, size, size, channels))
        shown = f"{batch}×{size}×{size}×{channels}"
        runs = [run_of(f, x, forward=True) for f in functions]
        yield f"maxima {window}×{window}/{strides}, both", shown, runs


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--repetitions", type=int, default=9)
    return parser


def main():
    arguments = make_parser().parse_args()
    keep_freed_memory()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, float32")
    print_header(COLUMNS)
    for what, given, runs in (*convolutions(), *pools()):
        if arguments.only not in what:
            continue
        ours, theirs = interleaved(runs, arguments.repetitions)
        row = {"what": what, "input": given, "ratio": quartiles(theirs / ours)}
        row |= {"ms": np.median(ours) * 1e3, "XLA's ms": np.median(theirs) * 1e3}
        print_row(COLUMNS, row)


if __name__ == "__main__":
    main()
