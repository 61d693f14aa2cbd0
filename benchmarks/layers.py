"""Each layer, forward and forward + backward, beside the original's own PyTorch code.

`python benchmarks/layers.py --originals=DIR` prints a markdown table. DIR holds checkouts named as
their repositories: fast-MPN-COV, Global-Second-order-Pooling-Convolutional-Networks, GFGP,
Compact-Global-Descriptor, DifferentiableSVD, FastDifferentiableMatSqrt, DropCov, DeepBDC, iSICE,
IterNorm-pytorch, SoT, Moment-Probing, ECANet, attention-module (CBAM), GCNet, SimAM, GCT,
style-based-recalibration-module, FcaNet, CoordAttention. Without it, ours is timed alone.
Repetitions of the two are interleaved; a ratio is the median of the ratios of neighbours, its
spread their quartiles.
"""

import argparse
import ctypes
import dataclasses
import importlib.util
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import original_attentions
import original_layers
import profiles
from tables import RATIO, print_header, print_row, quartiles

from sop import layers, ops


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer at a size.

    Attributes:
      name: for the table.
      batch, size, channels: of the input [B, size, size, C].
      ours: (key, x) → (function of (variables, x), variables).
      theirs: (originals, x in NCHW) → module or function of x in PyTorch; None: there is none.
    """

    name: str
    batch: int
    size: int
    channels: int
    ours: Callable
    theirs: Callable | None


def function(f):
    return lambda key, x: (lambda _, x: f(x), {})


def module(m):
    """A linen module in training mode; its parameters get gradients too."""

    def make(key, x):
        variables = m.init({"params": key, "dropout": key}, x, True)

        def f(v, x):
            return m.apply(v, x, True, mutable=["batch_stats"], rngs={"dropout": key})[0]

        return f, variables

    return make


def tokens(m):
    """The same for tokens, of which the first position is the class token."""
    make = module(m)

    def of_tokens(key, x):
        f, variables = make(key, x.reshape(len(x), -1, x.shape[3]))
        return lambda v, x: f(v, x.reshape(len(x), -1, x.shape[3])), variables

    return of_tokens


def cases():
    def add(name, batch, size, channels, ours, theirs):
        found.append(Case(name, batch, size, channels, ours, theirs))

    found = []
    for size, channels in ((7, 256), (14, 256), (28, 256), (8, 128), (16, 128), (7, 512)):
        for n in (3, 5):
            ours = function(lambda x, n=n: ops.isqrt_cov(x, n))
            add(f"iSQRT-COV N={n}", 16, size, channels, ours, original_layers.their_isqrt_cov(n))
    for size, channels in ((7, 256), (14, 256)):
        second_order = partial(add, batch=16, size=size, channels=channels)
        for name, theirs in original_layers.NORMALIZATIONS.items():
            ours = module(layers.MPNCOV(normalization=name))
            second_order(f"MPN-COV {name}", ours=ours, theirs=theirs)
        for layer, theirs in original_layers.REPRESENTATIONS.items():
            ours = module(getattr(layers, layer)())
            second_order(layer, ours=ours, theirs=theirs)
    for channels in (192, 384):
        ours = tokens(layers.MGCrP(True))
        add("MGCrP (SoT)", 16, 14, channels, ours, original_layers.their_mgcrp)
        ours = tokens(layers.MomentProbing(True))
        add("moment probing", 16, 14, channels, ours, original_layers.their_moment_probing)
    ours = module(layers.IterNorm(group_size=64))
    add("IterNorm d=64", 16, 28, 256, ours, original_layers.their_iter_norm)
    for size, channels in ((56, 256), (14, 1024)):
        for layer, theirs in original_attentions.ATTENTIONS.items():
            fields = {"side": size} if layer == "FcaNet" else {}
            add(layer, 8, size, channels, module(getattr(layers, layer)(**fields)), theirs)
    for size, channels in ((56, 256), (28, 512), (14, 1024), (14, 2048)):
        ours = module(layers.GSoP(planes=channels // 4))
        add("GSoP channel", 8, size, channels, ours, original_layers.their_gsop)
    for size, channels in ((112, 64), (56, 256), (28, 512), (14, 512)):
        ours = function(lambda x: ops.max_entropy_pool(x, 1.0))
        add("max-ent 2×2/2", 8, size, channels, ours, original_layers.their_max_entropy(2, 2, 0))
    ours = function(lambda x: ops.max_entropy_pool(x, 1.0, (3, 3), (2, 2), (1, 1)))
    add("max-ent 3×3/2", 8, 112, 64, ours, original_layers.their_max_entropy(3, 2, 1))
    for size, channels in ((112, 64), (28, 512)):
        add("GFGP 2×2/2", 8, size, channels, module(layers.GFGP(2)), original_layers.their_gfgp)
    for size, channels in ((112, 64), (14, 512), (56, 256)):
        add("CGD", 8, size, channels, module(layers.CGD()), original_layers.their_cgd)
    add("B-CNN", 8, 28, 512, function(ops.bilinear), original_layers.their_bilinear)
    # The original's sketches are drawn with seed 1; here as there the hashes are constants.
    compact = module(layers.CompactBilinear(8192))
    add("compact bilinear", 8, 28, 512, compact, original_layers.their_compact_bilinear)
    return found


class Ours:
    def __init__(self, case, x, dtype):
        self.x = jnp.asarray(x, dtype)
        f, variables = case.ours(jax.random.key(0), self.x)
        self.variables = variables
        params = variables.get("params", {})
        rest = {key: value for key, value in variables.items() if key != "params"}

        def apply(params, x):
            return f({**rest, "params": params}, x)

        self.apply, self.params = apply, params
        self.forward_step = jax.jit(apply)
        self.step = jax.jit(self._step)

    def _step(self, params, x, cotangent):
        y, pullback = jax.vjp(self.apply, params, x)
        return y, pullback(cotangent)

    def forward(self):
        return jax.block_until_ready(self.forward_step(self.params, self.x))

    def both(self, cotangent):
        y, (_, gradient) = jax.block_until_ready(self.step(self.params, self.x, cotangent))
        return y, gradient

    def profile(self, cotangent):
        compiled = self.step.lower(self.params, self.x, cotangent).compile()
        return profiles.operations(compiled, lambda: self.both(cotangent))

    def residual_bytes(self):
        """Of what the pullback holds, parameters excepted: the input is part of it."""
        _, pullback = jax.vjp(self.apply, self.params, self.x)
        held = {id(a): a.nbytes for a in jax.tree.leaves(pullback) if hasattr(a, "nbytes")}
        for a in jax.tree.leaves(self.variables):
            held.pop(id(a), None)
        return sum(held.values())


class Theirs:
    def __init__(self, case, originals, x, dtype, compiled=False):
        import torch

        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        kind = getattr(torch, dtype)
        x = torch.tensor(np.moveaxis(x, 3, 1).copy(), dtype=kind, device=self.device)
        self.x = x.requires_grad_()
        self.f = case.theirs(originals, self.x)
        if isinstance(self.f, torch.nn.Module):
            self.f.to(self.device, kind).train()
        if compiled:
            self.f = torch.compile(self.f)

    def _wait(self):
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def forward(self):
        with self.torch.no_grad():
            y = self.f(self.x)
        self._wait()
        return y

    def both(self, cotangent):
        self.x.grad = None
        y = self.f(self.x)
        y.backward(cotangent.reshape(y.shape))
        self._wait()
        return y, self.x.grad

    def residual_bytes(self):
        """Of distinct storages saved for the backward pass, parameters excepted."""
        held = {}

        def pack(a):
            held[a.untyped_storage().data_ptr()] = a.untyped_storage().nbytes()
            return a

        with self.torch.autograd.graph.saved_tensors_hooks(pack, lambda a: a):
            # Functions that keep an input of theirs save it as well.
            y = self.f(self.x)
        if isinstance(self.f, self.torch.nn.Module):
            for p in self.f.parameters():
                held.pop(p.untyped_storage().data_ptr(), None)
        del y
        return sum(held.values())


def nhwc(a):
    a = a.detach().float().cpu().numpy()
    return np.moveaxis(a, 1, 3) if a.ndim == 4 else a.reshape(a.shape[0], -1)


def clock(run, number=1):
    """Seconds of one of `number` runs in a row, after as many that do not count.

    In those OpenMP's threads, which spin for some milliseconds after PyTorch's work and would take
    a core from what comes next, fall asleep, and the kernel spreads the woken threads over cores.
    """
    for _ in range(number):
        run()
    start = time.perf_counter()
    for _ in range(number):
        run()
    return (time.perf_counter() - start) / number


def interleaved(runs, repetitions):
    """Seconds [runs, repetitions], each the mean over about 0.2 s, after a run to compile."""
    pairs = [(run, max(1, round(0.2 / clock(run)))) for run in runs]
    return np.array([[clock(*pair) for pair in pairs] for _ in range(repetitions)]).T


def error(found, expected):
    found = np.asarray(found, np.float64).reshape(expected.shape)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def float64_errors(case, x, cotangent, found):
    """Errors of (y, dx) of a layer without parameters against the same in float64."""
    with jax.enable_x64(True):
        exact = Ours(case, x.astype(np.float64), jnp.float64).both(np.float64(cotangent))
        exact = [np.asarray(a) for a in exact]
    return [error(a, b) for a, b in zip(found, exact, strict=True)]


def measure(case, arguments):
    x = np.random.default_rng(0).standard_normal((case.batch, case.size, case.size, case.channels))
    x = np.maximum(x, 0).astype(np.float32)  # as after a ReLU
    ours = Ours(case, x, arguments.dtype)
    y = ours.forward()
    cotangent = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    v = jnp.asarray(cotangent, y.dtype)
    row = {"layer": case.name, "input": f"{case.batch}×{case.channels}×{case.size}×{case.size}"}
    runs = {"forward": [ours.forward], "both": [lambda: ours.both(v)]}
    row["residual MB"] = ours.residual_bytes() / 1e6
    random = case.name == "DropCov"
    comparable = not ours.params and not random and case.name != "compact bilinear"
    precise = comparable and arguments.dtype == "float32"
    if precise:
        row["error"] = max(float64_errors(case, x, cotangent, ours.both(v)))
    if arguments.originals is not None and case.theirs is not None:
        theirs = Theirs(case, arguments.originals, x, arguments.dtype, arguments.compile)
        w = np.moveaxis(cotangent, 3, 1) if cotangent.ndim == 4 else cotangent
        w = theirs.torch.tensor(w.copy(), dtype=theirs.x.dtype, device=theirs.device)
        runs["forward"].append(theirs.forward)
        runs["both"].append(lambda: theirs.both(w))
        row["their residual MB"] = theirs.residual_bytes() / 1e6
        if precise:
            row["their error"] = max(
                float64_errors(case, x, cotangent, [nhwc(a) for a in theirs.both(w)])
            )
    for name, pair in runs.items():
        seconds = interleaved(pair, arguments.repetitions)
        row[f"{name} ms"] = float(np.median(seconds[0]) * 1e3)
        if len(pair) > 1:
            ratio = seconds[1] / seconds[0]
            row[f"their {name} ms"] = float(np.median(seconds[1]) * 1e3)
            row[f"{name} ratio"] = quartiles(ratio)
    if arguments.profile:
        row["profile"] = ours.profile(v)
    return row


COLUMNS = {
    "layer": "{}",
    "input": "{}",
    "forward ms": "{:.2f}",
    "their forward ms": "{:.2f}",
    "forward ratio": RATIO,
    "both ms": "{:.2f}",
    "their both ms": "{:.2f}",
    "both ratio": RATIO,
    "residual MB": "{:.1f}",
    "their residual MB": "{:.1f}",
    "error": "{:.0e}",
    "their error": "{:.0e}",
}


def keep_freed_memory():
    """Tells glibc not to return large blocks to the kernel after every call.

    Otherwise page faults are timed, in both frameworks, instead of the layers.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-8, 1)  # M_ARENA_MAX: heaps other than the first go when they are empty
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--originals", type=Path, metavar="DIR")
    parser.add_argument(
        "--only", default="", help="names or inputs that have one of these, a,b,…, in them"
    )
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--batch", type=int, help="instead of each case's own")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true", help="theirs: torch.compile")
    parser.add_argument("--profile", action="store_true", help="where the time of ours goes")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--malloc", action="store_true", help="leave glibc's malloc as it is")
    return parser


def main():
    arguments = make_parser().parse_args()
    if not arguments.malloc:
        keep_freed_memory()
    versions = f"jax {jax.__version__}"
    if arguments.originals is None:
        print("No --originals=DIR: ours alone.")
    elif importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: ours alone.")
        arguments.originals = None
    else:
        import torch

        versions += f", torch {torch.__version__} on {torch.get_num_threads()} threads"
    print(f"{jax.devices()[0].device_kind}, {versions}, {arguments.dtype}, {time.strftime('%F')}")
    print_header(COLUMNS)
    rows = []
    for case in cases():
        row = f"{case.name} {case.channels}×{case.size}×{case.size}"
        if not any(part in row for part in arguments.only.split(",")):
            continue
        if arguments.batch is not None:
            case = dataclasses.replace(case, batch=arguments.batch)
        rows.append(measure(case, arguments))
        print_row(COLUMNS, rows[-1])
    if arguments.profile:
        for row in rows:
            profiles.print_operations(f"{row['layer']}, {row['input']}", row["profile"])
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
