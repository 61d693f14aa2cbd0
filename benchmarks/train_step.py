"""A training step of whole networks, beside the originals' own in PyTorch.

`python benchmarks/train_step.py [--originals=DIR] [--networks=gavp,mpncov,…]` prints a table. Ours
is the step that main.py runs: `make_train_step` and `data_parallel` of a config's network, the
state donated, uint8 noise copied to the device at each step. Theirs is the network of a checkout in
DIR (see layers.py) with cross-entropy and SGD, its images normalised and on the device beforehand;
GFGP's CUDA kernel is replaced by its equation in PyTorch. Each network has a process of its own;
processes take turns, `--steps` steps each. malloc is left as it is. Columns:

- ms: of one step, median over repetitions and quartiles. "÷ plain": by that of 'gavp', if timed
  first; not in turns. ratio: theirs ÷ ours, in turns.
- share: 1 − t₀/t in turns, t₀ of the same network at the same strides without the method: no
  attention, average pooling, global average. The reduction to 256 channels and the wider classifier
  that come with MPN-COV count as its own.
- first step: from building the network to the end of its first step, compilation included.
- peak: device memory where the device tells, else growth of ru_maxrss since the imports, which has
  the compiler's memory in it. program: what the compiled step of ours needs, by the compiler.

On a GPU: `--dtype=bfloat16 --batch=256 --steps=10 --compile` (theirs under autocast, channels-last,
`torch.compile`); none was at hand: untested there. B-CNN on ResNet-50 would need a classifier of
2048² × 1000 weights; --networks also takes experiments, `configs/FILE.py:NAME`, timed alone.
"""

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
import types
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from tables import RATIO, print_header, print_row, quartiles

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Several processes share the device.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

# Each process imports JAX or PyTorch where it needs it, so that one's memory is not the other's.


# Small, that a few steps on noise stay finite.
LEARNING_RATE = 0.01


@dataclasses.dataclass(frozen=True)
class Case:
    """A network: its config and changes to config.model; the same for it without the method."""

    config: str
    changes: dict = dataclasses.field(default_factory=dict)
    without: tuple[str, dict] | None = None


PLAIN = ("configs/imagenet.py:resnet50_gavp", {})
STRIDE_1 = ("configs/imagenet.py:resnet50_gavp", {"last_stride": 1})
AVERAGE = ("configs/imagenet.py:resnet50_gfgp", {"pool": {"name": "average"}})
CASES = {  # neighbours share the network without the method
    "gavp": Case("configs/imagenet.py:resnet50_gavp"),
    "cgd": Case("configs/imagenet.py:resnet50_cgd", without=PLAIN),
    "compact_bilinear": Case(
        "configs/imagenet.py:resnet50_gavp", {"representation": {"name": "compact_bilinear"}}, PLAIN
    ),
    "mpncov": Case("configs/imagenet.py:resnet50_mpncov", without=STRIDE_1),
    "gsop1": Case("configs/imagenet.py:resnet50_gsop1", without=STRIDE_1),
    "gsop2": Case("configs/imagenet.py:resnet50_gsop2", without=STRIDE_1),
    "gfgp": Case("configs/imagenet.py:resnet50_gfgp", without=AVERAGE),
}


def noise(arguments):
    """Images uint8 [B,H,W,3], labels int32 [B]."""
    random = np.random.default_rng(0)
    size = arguments.image_size
    images = random.integers(0, 256, (arguments.batch, size, size, 3), np.uint8)
    return images, random.integers(0, 100, arguments.batch, np.int32)


def ours(config, changes, arguments):
    """The machine, a function that builds what runs n steps, and one for memory in bytes."""
    import jax

    from sop.config.command_line import load
    from sop.data.normalization import normalize
    from sop.models import create_model
    from sop.training.memory import needed_bytes
    from sop.training.optimizer import make_optimizer, make_schedule
    from sop.training.state import init_state, init_variables
    from sop.training.step import data_parallel, make_mesh, make_train_step, replicated, to_devices

    config = load(str(ROOT / config))
    with config.unlocked():
        config.model.update(changes)
    images, labels = noise(arguments)
    batch = {"image": images, "label": labels % config.model.num_classes}
    dtype = jax.numpy.dtype(arguments.dtype)
    program = None

    def build():
        nonlocal program
        model, mesh = create_model(config.model, dtype=dtype), make_mesh()
        variables = partial(init_variables, model, config.seed, images.shape[1:])
        schedule = make_schedule(config.schedule, LEARNING_RATE, config.num_epochs, 10_000)
        params = jax.eval_shape(variables)["params"]
        tx = make_optimizer(config.optimizer, schedule, params)
        prepare = partial(normalize, name=config.input.normalization, dtype=dtype)
        step = make_train_step(model, tx, normalize=prepare, label_smoothing=config.label_smoothing)
        step = data_parallel(step, mesh, donate=True)
        begin = jax.jit(lambda: init_state(variables(), tx), out_shardings=replicated(mesh))
        state = begin()
        compiled = step.lower(state, to_devices(mesh, batch)).compile()
        program = needed_bytes(compiled)

        def run(steps):
            nonlocal state
            for _ in range(steps):
                state, metrics = compiled(state, to_devices(mesh, batch))
            jax.block_until_ready(state)
            return float(metrics["loss"])

        return run

    def memory():
        stats = jax.local_devices()[0].memory_stats() or {}
        return {"peak": stats.get("peak_bytes_in_use"), "program": program}

    return f"{jax.devices()[0].device_kind}, jax {jax.__version__}", build, memory


def checkout(folder, module):
    """A module of a checkout; its folder becomes a package, for relative imports."""
    package = types.ModuleType("original")
    package.__path__ = [str(folder)]
    sys.modules["original"] = package
    return importlib.import_module(f"original.{module}")


def their_resnet50(name, originals):
    """A function that builds the network of an original."""
    import original_layers
    import torch

    def gsop_net(build, mode):
        places = ["001", "0001", "000001", "001" if mode == 1 else "000"]
        network = build(att_position=[list(word) for word in places], GSoP_mode=mode)
        network.avgpool = torch.nn.AdaptiveAvgPool2d(1)  # theirs takes 14×14 alone
        return network

    def compact_bilinear(build):
        network = build()
        network.avgpool = original_layers.their_compact_bilinear(originals, torch.empty(1, 2048))
        network.fc = torch.nn.Linear(8192, 1000)
        return network

    if name == "gfgp":
        kernel = types.ModuleType("original.modules.maxentpool_cuda")
        pool = types.SimpleNamespace(apply=max_entropy)
        kernel.maxentpool2d = types.SimpleNamespace(maxentpool2d_func=pool)
        sys.modules[kernel.__name__] = kernel
        return partial(checkout(originals / "GFGP/models", "resnet").resnet50, ptype="max_ent")
    if name == "cgd":
        folder = originals / "Compact-Global-Descriptor/classification/models/imagenet"
        return checkout(folder, "resnet").resnet50
    sys.path.insert(0, str(originals / "fast-MPN-COV"))
    covariance = importlib.import_module("src.representation.MPNCOV")
    if name in ("gsop1", "gsop2"):
        network = checkout(originals / original_layers.GSOP / "torchvision/models", "resnet")
        # The same function; its own has a backward pass that today's PyTorch refuses.
        network.MPNCOV.TriuvecLayer = covariance.TriuvecLayer
        return partial(gsop_net, network.resnet50, int(name[-1]))
    if name == "mpncov":
        network = importlib.import_module("src.network.mpncovresnet")
        network.MPNCOV = covariance  # it means the file and gets the class of this name
        return network.mpncovresnet50
    plain = importlib.import_module("src.network.resnet").resnet50
    return plain if name == "gavp" else partial(compact_bilinear, plain)


def max_entropy(x, lam, window, stride, padding, ceil_mode):
    """In the place of GFGP's kernel; its ResNets have square windows and do not round up."""
    import original_layers

    return original_layers.torch_max_entropy(x, lam, window[0], stride[0], padding[0])


def theirs(name, originals, arguments):
    """As `ours`, for the original in PyTorch."""
    import torch

    warnings.simplefilter("ignore")  # the syntax of 2018
    make = their_resnet50(name, originals)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if arguments.compile else torch.contiguous_format
    images, labels = noise(arguments)
    x = torch.tensor(images).permute(0, 3, 1, 2).to(device).float()
    x = ((x - 118) / 58).contiguous(memory_format=layout)
    labels = torch.tensor(labels, dtype=torch.long, device=device)
    autocast = torch.autocast(device, torch.bfloat16, enabled=arguments.dtype == "bfloat16")

    def build():
        network = make().to(device, memory_format=layout).train()
        optimizer = torch.optim.SGD(
            network.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=1e-4
        )
        if arguments.compile:
            network = torch.compile(network)
        criterion = torch.nn.CrossEntropyLoss()

        def run(steps):
            for _ in range(steps):
                optimizer.zero_grad()
                with autocast:
                    loss = criterion(network(x), labels)
                loss.backward()
                optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            return loss.item()

        return run

    def memory():
        return {"peak": torch.cuda.max_memory_allocated() if device == "cuda" else None}

    return f"torch {torch.__version__} on {torch.get_num_threads()} threads", build, memory


def work(pipe, make, *arguments):
    """In a process of its own: builds, says how the first step went, then runs as it is told."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            machine, build, memory = make(*arguments)
            before = resident_peak()
            start = time.perf_counter()
            run = build()
            run(1)
            first = time.perf_counter() - start
            run(1)
            pipe.send((machine, first))
            while steps := pipe.recv():
                start = time.perf_counter()
                loss = run(steps)
                pipe.send((time.perf_counter() - start) / steps)
                if not np.isfinite(loss):
                    print(f"The loss of {make.__name__} {arguments[0]} is {loss}.", file=sys.stderr)
            found = memory()
            found["peak"] = found["peak"] or resident_peak() - before
            pipe.send({f"{name} MB": size / 1e6 for name, size in found.items() if size})
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def resident_peak():
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Worker:
    """The parent's end of `work`; a RuntimeError where that fails."""

    def __init__(self, make, *arguments):
        spawn = multiprocessing.get_context("spawn")
        self.pipe, end = spawn.Pipe()
        spawn.Process(target=work, args=(end, make, *arguments), daemon=True).start()
        end.close()
        self.machine, self.first = self._answer()

    def _answer(self):
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            answer = "its process ended, perhaps for lack of memory"
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def __call__(self, steps):
        """Seconds of a step, over so many; of 0 steps: ends the process, its memory in MB."""
        with contextlib.suppress(OSError):  # its process has ended, which the answer tells
            self.pipe.send(steps)
        return self._answer()


def measure(name, case, without, arguments):
    """The row of a network; `without`: a worker for it without the method, or None."""
    workers = {"": Worker(ours, case.config, case.changes, arguments)}
    if arguments.originals is not None and name in CASES:
        try:
            workers["their "] = Worker(theirs, name, arguments.originals, arguments)
        except RuntimeError as error:
            print(f"The original of {name} does not run: {error}", file=sys.stderr)
    everyone = {**workers, "without ": without} if without else workers
    turns = [
        [worker(arguments.steps) for worker in everyone.values()]
        for _ in range(arguments.repetitions)
    ]
    seconds = dict(zip(everyone, np.array(turns).T, strict=True))
    row = {"network": name, "machine": ", ".join(each.machine for each in workers.values())}
    for who, worker in workers.items():
        row[f"{who}ms"] = quartiles(seconds[who] * 1e3)
        row[f"{who}images/s"] = arguments.batch / float(np.median(seconds[who]))
        row[f"{who}first step s"] = worker.first
        row |= {f"{who}{name}": size for name, size in worker(0).items()}
    if "their " in workers:
        row["ratio"] = quartiles(seconds["their "] / seconds[""])
    if without:
        row["share"] = quartiles(1 - seconds["without "] / seconds[""])
    return row


MEDIAN, PERCENT = "{0[0]:.0f} ({0[1]:.0f}–{0[2]:.0f})", "{0[0]:.1%} ({0[1]:.1%}–{0[2]:.1%})"
OF_EACH = {"ms": MEDIAN, "images/s": "{:.2f}", "first step s": "{:.1f}", "peak MB": "{:.0f}"}
COLUMNS = {
    "network": "{}",
    **OF_EACH,
    "program MB": "{:.0f}",
    "÷ plain": "{:.2f}",
    "share": PERCENT,
    **{f"their {name}": form for name, form in OF_EACH.items()},
    "ratio": RATIO,
}


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--originals", type=Path, metavar="DIR")
    parser.add_argument("--networks", default=",".join(CASES), help="names, with commas between")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, default=1, help="of a repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="theirs: compile, channels-last")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    return parser


def main():
    arguments = make_parser().parse_args()
    if arguments.originals is None:
        print("No --originals=DIR: ours alone.")
    elif importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: ours alone.")
        arguments.originals = None
    print_header(COLUMNS)
    rows, key, without = [], None, None
    for name in arguments.networks.split(","):
        case = CASES.get(name, Case(name))
        try:
            if case.without and case.without != key:
                if without:
                    done, key, without = without, None, None
                    done(0)
                key, without = case.without, Worker(ours, *case.without, arguments)
            row = measure(name, case, case.without and without, arguments)
        except RuntimeError as error:
            print(f"{name} does not run: {error}", file=sys.stderr)
            continue
        rows.append(row)
        if rows[0]["network"] == "gavp":
            row["÷ plain"] = row["ms"][0] / rows[0]["ms"][0]
        print_row(COLUMNS, row)
    if without:
        with contextlib.suppress(RuntimeError):
            without(0)
    if rows:
        print(
            f"\n{platform.machine()}, {os.cpu_count()} cores, {rows[0]['machine']}; batch "
            f"{arguments.batch}, {arguments.image_size} pixels, {arguments.dtype}, "
            f"{arguments.repetitions} repetitions of {arguments.steps} steps, load "
            f"{os.getloadavg()[0]:.1f}, {time.strftime('%F')}"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
