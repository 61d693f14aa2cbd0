"""How near each square root, and its gradient, is to the root itself, by condition number.

`python benchmarks/square_roots.py` prints a markdown table: errors in float32 by the largest entry,
for matrices whose C eigenvalues fall geometrically from 1 to 1/condition.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tables import print_header, print_row

from sop import ops

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


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=64)
    return parser


def main():
    arguments = make_parser().parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, C = {arguments.channels}")
    print_header(COLUMNS)
    for name, root in ROOTS.items():
        found = [e for c in (1e1, 1e3, 1e5) for e in errors(root, arguments.channels, c)]
        print_row(COLUMNS, dict(zip(COLUMNS, [name, *found], strict=True)))


if __name__ == "__main__":
    main()
