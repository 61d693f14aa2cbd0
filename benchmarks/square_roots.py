"""Which normalisation of a covariance: how near to the root, how fast, how much memory.

`python benchmarks/square_roots.py` prints two markdown tables. The first has the errors of each
square root and its gradient against the root itself, in float32 by the largest entry, for matrices
whose C eigenvalues fall geometrically from 1 to 1/condition. The second has MPN-COV with each
normalisation, of 16 images with n positions: forward and backward, beside five iterations in turns,
what the backward pass holds, and the larger error of output and gradient against the same
normalisation in float64, of features in float32 and of the same rounded to bfloat16.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from layers import (
    Case,
    Ours,
    float64_errors,
    interleaved,
    keep_freed_memory,
    module,
)
from tables import RATIO, print_header, print_row, quartiles

from sop import ops
from sop.layers import MPNCOV

ROOTS = {
    "newton_schulz N=5": partial(ops.matrix_sqrt, num_iters=5),
    "newton_schulz N=12": partial(ops.matrix_sqrt, num_iters=12),
    "pade_lyapunov": ops.matrix_sqrt_pade,
    "eigh": partial(ops.matrix_power, alpha=0.5),
}
COLUMNS = {
    "root": "{}",
    **{f"{c:.0e}, {what}": "{:.0e}" for c in (1e1, 1e3, 1e5) for what in ("value", "gradient")},
}
NORMALIZATIONS = ("newton_schulz", "pade_lyapunov", "eigh", "log", "element", "none")
LAYER_COLUMNS = {
    "normalization": "{}",
    "C": "{}",
    "n": "{}",
    "ms": "{:.2f}",
    "÷ newton_schulz": RATIO,
    "residual MB": "{:.1f}",
    "float32": "{:.0e}",
    "bfloat16": "{:.0e}",
}


def errors(root, channels, condition):
    """Of value and gradient."""
    generator = np.random.default_rng(0)
    basis, _ = np.linalg.qr(generator.standard_normal((channels, channels)))
    values = np.geomspace(1, 1 / condition, channels)
    v = generator.standard_normal((channels, channels))
    v += v.T
    roots = np.sqrt(values)
    exact = (basis * roots) @ basis.T
    gradient = basis @ (basis.T @ v @ basis / (roots[:, None] + roots)) @ basis.T
    y, pullback = jax.vjp(root, jnp.asarray((basis * values) @ basis.T, jnp.float32))
    [found] = pullback(jnp.asarray(v, jnp.float32))
    pairs = (y, exact), (found, gradient)
    return [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs]


def layer_rows(channels, side, repetitions):
    """Of each normalisation, of features as after a ReLU; the covariance has rank n − 1 at most."""
    x = np.random.default_rng(0).standard_normal((16, side, side, channels)).astype(np.float32)
    x = np.maximum(x, 0)
    cotangent, iteration = None, None
    for name in NORMALIZATIONS:
        case = Case(name, 16, side, channels, module(MPNCOV(normalization=name)), None)
        layer = Ours(case, x, jnp.float32)
        if cotangent is None:
            shape = layer.forward().shape
            cotangent = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
            iteration = layer
        pair = [partial(each.both, cotangent) for each in (layer, iteration)]
        seconds = interleaved(pair, repetitions)
        row = {"normalization": name, "C": channels, "n": side**2}
        row |= {"ms": np.median(seconds[0]) * 1e3, "residual MB": layer.residual_bytes() / 1e6}
        row["÷ newton_schulz"] = quartiles(seconds[0] / seconds[1])
        for dtype in ("float32", "bfloat16"):
            found = Ours(case, x, dtype).both(cotangent)
            row[dtype] = max(float64_errors(case, x, cotangent, found))
        yield row


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=7)
    return parser


def main():
    arguments = make_parser().parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, C = {arguments.channels}")
    print_header(COLUMNS)
    for name, root in ROOTS.items():
        found = [e for c in (1e1, 1e3, 1e5) for e in errors(root, arguments.channels, c)]
        print_row(COLUMNS, dict(zip(COLUMNS, [name, *found], strict=True)))
    keep_freed_memory()
    print_header(LAYER_COLUMNS)
    for side in (7, 14):
        for row in layer_rows(arguments.channels, side, arguments.repetitions):
            print_row(LAYER_COLUMNS, row)


if __name__ == "__main__":
    main()
