"""Bytes that layers move on a TPU, as its compiler counts them, by those of their input.

`python benchmarks/layer_bytes.py` prints a markdown table; it needs the TPU compiler of
`pip install -e '.[tpu]'` and no TPU. 128 images in bfloat16, at places of a ResNet-50. Columns:

- forward, backward: the compiler's count, in multiples of the bytes of x. A layer is trained, so
  its backward pass includes what it computes of the forward pass again. The least that is possible
  is one read of x and one write of y forward, one read of x and of y's cotangent and one write of
  x's cotangent backward.
- products, copies, rest: shares of the backward program's bytes, by what its operations read and
  write: matrix products and convolutions, whatever is fused into them; changes of layout and moves
  between memories; everything else.

`--only` names layers.
"""

import argparse
import collections
import re

import jax
import jax.numpy as jnp
from compile import computations, devices_of, not_taken, operations
from jax.sharding import SingleDeviceSharding
from tables import print_header, print_row

from sop import layers, ops

IMAGES = 128
COLUMNS = {
    "layer": "{}",
    "input": "{}",
    "forward": "{:.2f}",
    "backward": "{:.2f}",
    "products": "{:.0%}",
    "copies": "{:.0%}",
    "rest": "{:.0%}",
}


def module(layer):
    """A layer in training, with the gradients of its variables."""

    def make(x):
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}

        def f(variables, x):
            return layer.apply(variables, x, True, mutable=["batch_stats"], rngs=keys)[0]

        return f, jax.eval_shape(lambda x: layer.init(keys, x, True), x)

    return make


def pooling(window, strides, padding):
    """Max-entropy pooling; its softness is the parameter."""

    def make(x):
        softness = jax.ShapeDtypeStruct((x.shape[0], 1, 1, x.shape[3]), jnp.float32)
        return lambda p, x: ops.max_entropy_pool(x, p, window, strides, padding), softness

    return make


CASES = {
    "max-ent 2×2/2": (112, 64, pooling((2, 2), (2, 2), (0, 0))),
    "max-ent 3×3/2, padded by 1": (112, 64, pooling((3, 3), (2, 2), (1, 1))),
    "fast MPN-COV": (14, 2048, module(layers.MPNCOV(reduction=256))),
    "its covariance and root": (14, 256, module(layers.MPNCOV(reduction=0))),
    "GSoP, first stage": (56, 256, module(layers.GSoP(planes=64))),
    "GSoP, last stage": (14, 2048, module(layers.GSoP(planes=512))),
    "CGD, first stage": (56, 256, module(layers.CGD())),
    "compact bilinear": (7, 2048, module(layers.CompactBilinear())),
}


def groups(text):
    """Shares of a compiled program's bytes, by kind of operation."""
    *_, entry = computations(text).values()
    sums = collections.Counter()
    for kind, line, size in operations(entry):
        sums[_group(kind, line)] += size
    return {name: sums[name] / sum(sums.values()) for name in ("products", "copies", "rest")}


def _group(kind, line):
    if re.match(r"copy|transpose|slice-start|async-start", kind):
        return "copies"
    if re.search(r'op_name="[^"]*(dot_general|conv_general_dilated|pallas_call)"', line):
        return "products"
    return "rest"


def row_of(name, place):
    size, channels, make = CASES[name]

    def placed(shape):
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)

    x = placed(jax.ShapeDtypeStruct((IMAGES, size, size, channels), jnp.bfloat16))
    forward, variables = make(x)
    variables = jax.tree.map(placed, variables)
    cotangent = placed(jax.eval_shape(forward, variables, x))

    def backward(variables, x, cotangent):
        return jax.vjp(forward, variables, x)[1](cotangent)

    first = jax.jit(forward).lower(variables, x).compile()
    second = jax.jit(backward).lower(variables, x, cotangent).compile()
    moved = (
        each.cost_analysis()["bytes accessed"] - not_taken(each.as_text())
        for each in (first, second)
    )
    multiples = (each / (x.size * x.dtype.itemsize) for each in moved)
    row = dict(zip(("forward", "backward"), multiples, strict=True))
    return row | {"layer": name, "input": f"{size}×{size}×{channels}"} | groups(second.as_text())


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:2x2x1")
    parser.add_argument("--only", default="", help="part of a layer's name")
    return parser


def main():
    arguments = make_parser().parse_args()
    place = SingleDeviceSharding(devices_of(arguments.topology)[0])
    print(f"{arguments.topology}, jax {jax.__version__}, {IMAGES} images, bfloat16")
    print_header(COLUMNS)
    for name in CASES:
        if arguments.only in name:
            print_row(COLUMNS, row_of(name, place))


if __name__ == "__main__":
    main()
