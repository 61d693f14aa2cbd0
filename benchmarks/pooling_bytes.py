"""Bytes that max-entropy pooling moves on a TPU, as its compiler counts them, by those of x.

`python benchmarks/pooling_bytes.py` prints a markdown table; it needs the TPU compiler of
`pip install -e '.[tpu]'` and no TPU. The least that is possible is one read of x and one write of
y forward, one read of x and of y's cotangent and one write of x's backward.
"""

import argparse

import jax
import jax.numpy as jnp
from compile import devices_of
from jax.sharding import SingleDeviceSharding
from tables import print_header, print_row

from sop import ops

COLUMNS = {"windows": "{}", "forward": "{:.2f}", "backward": "{:.2f}"}
WINDOWS = {"2×2/2": ((2, 2), (2, 2), (0, 0)), "3×3/2, padded by 1": ((3, 3), (2, 2), (1, 1))}


def moved(function, *shapes) -> float:
    """Bytes a program reads and writes."""
    return jax.jit(function).lower(*shapes).compile().cost_analysis()["bytes accessed"]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:2x2x1")
    parser.add_argument("--shape", type=int, nargs=4, default=(128, 112, 112, 64))
    return parser


def main():
    arguments = make_parser().parse_args()
    place = SingleDeviceSharding(devices_of(arguments.topology)[0])

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    x = array(tuple(arguments.shape), jnp.bfloat16)
    softness = array((x.shape[0], 1, 1, x.shape[3]), jnp.float32)
    print(f"{arguments.topology}, jax {jax.__version__}, bfloat16, {x.shape}")
    print_header(COLUMNS)
    for name, (window, strides, padding) in WINDOWS.items():

        def pool(x, softness, how=(window, strides, padding)):
            return ops.max_entropy_pool(x, softness, *how)

        def backward(x, softness, cotangent, pool=pool):
            return jax.vjp(pool, x, softness)[1](cotangent)

        y = jax.eval_shape(pool, x, softness)
        cotangent = array(y.shape, y.dtype)
        of = (moved(pool, x, softness), moved(backward, x, softness, cotangent))
        size = x.size * x.dtype.itemsize
        print_row(COLUMNS, dict(zip(COLUMNS, (name, *(each / size for each in of)), strict=True)))


if __name__ == "__main__":
    main()
