"""How many bits the products of second-order statistics need: what an accelerator's would cost.

`python benchmarks/precision.py` prints markdown tables. On the CPU each product of float32 matrices
is replaced by what accelerators make of it; sums stay float32:

- 6 passes: factors as sums of three bfloat16 numbers, the six largest of the nine products
  ('highest' on TPUs).
- 3 passes: as sums of two, without the product of the two small parts ('high' on TPUs).
- TF32: factors rounded to 10 explicit bits of mantissa ('high' and 'default' on NVIDIA GPUs).
- 1 pass: rounded to bfloat16, 7 bits ('default' on TPUs).

An error is the largest of a value by the largest of its reference, the same N iterations (not the
root that they approach) in float64: of iSQRT-COV's output, and of its gradient for a random
cotangent, for features whose covariance has eigenvalues that fall geometrically from 1 to
1/condition. The second table is of the logits and the whole gradient of small networks, beside
those of the same network in bfloat16.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from tables import print_header, print_row

from sop import ops
from sop.models import create_model
from sop.ops.derivatives import linear
from sop.training.state import init_variables

FLOAT32_EINSUM = jnp.einsum
# Explicit bits of mantissa, parts of a factor.
KINDS = {"6 passes": (7, 3), "3 passes": (7, 2), "TF32": (10, 1), "1 pass": (7, 1)}
NETWORKS = {
    "MPN-COV": {"representation": {"name": "mpncov", "reduction": 64, "dropout": 0.0}},
    "GSoP": {"attention": {"name": "gsop", "dim": 16}},
}
BASE = {"channels": 256, "positions": 196, "iterations": 5, "condition": 1e4}
POINTS = [
    *({**BASE, "condition": 10.0**power} for power in range(0, 9, 2)),
    *({**BASE, "iterations": n} for n in (1, 3, 7)),
    *(
        {**BASE, "channels": channels, "positions": positions}
        for channels, positions in ((64, 49), (64, 196), (64, 784), (256, 49))
    ),
]
OF_KINDS = {
    f"{kind}, {what}": "{:.0e}" for kind in ("float32", *KINDS) for what in ("output", "gradient")
}


def einsum(subscripts, a, b, bits, parts, precision=None):
    """`jnp.einsum` of two factors, as a sum of products of their rounded parts."""

    def product(subscripts, a, b):
        pairs = zip(split(a, bits, parts), range(parts), strict=True)
        of_b = split(b, bits, parts)
        terms = [FLOAT32_EINSUM(subscripts, x, y) for x, i in pairs for y in of_b[: parts - i]]
        return sum(terms[1:], terms[0])

    factors, out = subscripts.split("->")
    left, right = factors.split(",")

    def there(residuals, tangents):
        (a, b), (da, db) = residuals, tangents
        return [product(subscripts, da, b) + product(subscripts, a, db)]

    def back(residuals, cotangents):
        (a, b), [g] = residuals, cotangents
        return [product(f"{out},{right}->{left}", g, b), product(f"{left},{out}->{right}", a, g)]

    @jax.custom_jvp
    def both(a, b):
        return product(subscripts, a, b)

    @both.defjvp
    def _(primals, tangents):
        return both(*primals), linear(there, back, tangents, primals)[0]

    return both(a, b)


def split(x, bits, parts):
    """The largest part first; each has `bits` explicit bits of mantissa."""
    found = []
    for _ in range(parts):
        found.append(lax.reduce_precision(x, 8, bits))
        x = x - found[-1]
    return found


def multiplied(kind):
    """A context in which the products of `sop.ops` are of this kind."""
    if kind not in KINDS:
        return mock.patch.object(jnp, "einsum", FLOAT32_EINSUM)
    bits, parts = KINDS[kind]
    return mock.patch.object(jnp, "einsum", partial(einsum, bits=bits, parts=parts))


def error(found, expected):
    """The largest of all arrays' errors, by the largest entry of the reference."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    gaps = [float(np.abs(np.asarray(a, np.float64) - b).max()) for a, b in pairs]
    return max(gaps) / max(float(np.abs(b).max()) for b in jax.tree.leaves(expected))


def features(channels, positions, condition, batch=2):
    """[B, n, 1, C] of mean zero, whose covariance has `condition` where it is not zero."""
    random = np.random.default_rng(0)
    rank = min(channels, positions - 1)
    values = np.geomspace(1, condition**-0.5, rank)

    def one():
        rows = random.standard_normal((positions, rank))
        rows, _ = np.linalg.qr(rows - rows.mean(axis=0))
        columns, _ = np.linalg.qr(random.standard_normal((channels, rank)))
        return (rows * values) @ columns.T

    return np.stack([one() for _ in range(batch)])[:, :, None]


def of_layer(point):
    """Errors of iSQRT-COV by kind of product: {'float32, output': …}."""
    x = np.float32(features(point["channels"], point["positions"], point["condition"]))
    channels = x.shape[-1]
    v = np.random.default_rng(1).standard_normal((len(x), channels * (channels + 1) // 2))
    v = np.float32(v)

    @jax.jit
    def both(x, v):
        y, pullback = jax.vjp(partial(ops.isqrt_cov, num_iters=point["iterations"]), x)
        return y, pullback(v)[0]

    with jax.enable_x64(True):
        exact = [np.asarray(a) for a in both(np.float64(x), np.float64(v))]
    row = {}
    for kind in ("float32", *KINDS):
        jax.clear_caches()  # what is traced does not know what einsum was
        with multiplied(kind):
            found = both(x, v)
        for what, a, b in zip(("output", "gradient"), found, exact, strict=True):
            row[f"{kind}, {what}"] = error(a, b)
    return row


def of_network(model_config):
    """Errors of a network's logits and gradient by kind, and of the network in bfloat16."""
    random = np.random.default_rng(0)
    images = np.float32(random.standard_normal((8, 32, 32, 3)))
    labels = random.integers(0, 10, 8)
    config = {"backbone": "resnet8_cifar", "num_classes": 10, **model_config}
    variables = jax.jit(partial(init_variables, create_model(config), 0, images.shape[1:]))()
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}

    def both(params, rest, images, dtype=None):
        images = images.astype(dtype or images.dtype)
        model = create_model(config, dtype=images.dtype)

        def loss(params):
            variables = {"params": params, **rest}
            logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), logits

        (_, logits), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return logits, gradient

    with jax.enable_x64(True):
        wide = partial(jax.tree.map, lambda a: np.asarray(a, np.float64))
        exact = wide(jax.jit(both)(*map(wide, (params, rest, images))))
    row = {}
    for kind in ("float32", *KINDS, "bfloat16"):
        jax.clear_caches()
        dtype = jnp.bfloat16 if kind == "bfloat16" else None
        with multiplied(kind):
            found = jax.jit(partial(both, dtype=dtype))(params, rest, images)
        for what, a, b in zip(("output", "gradient"), found, exact, strict=True):
            row[f"{kind}, {what}"] = error(a, b)
    return row


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("layer", "networks"), help="one of the two tables")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    return parser


def main():
    arguments = make_parser().parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, emulated")
    rows = []
    if arguments.only != "networks":
        columns = {"C": "{}", "n": "{}", "N": "{}", "condition": "{:.0e}", **OF_KINDS}
        print_header(columns)
        for point in POINTS:
            rows.append({**dict(zip(columns, point.values(), strict=False)), **of_layer(point)})
            print_row(columns, rows[-1])
    if arguments.only != "layer":
        columns = {"network": "{}", **OF_KINDS}
        columns |= {f"bfloat16, {what}": "{:.0e}" for what in ("output", "gradient")}
        print_header(columns)
        for name, config in NETWORKS.items():
            rows.append({"network": name, **of_network(config)})
            print_row(columns, rows[-1])
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
