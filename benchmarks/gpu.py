"""All that is measured on a GPU, by one command that can be stopped and started again.

`python benchmarks/gpu.py --originals=DIR` (DIR: see layers.py) saves each row in --rows as it is
there, prints it, begins none after --minutes, and skips those that are there for this device. Rows:

- golden: the tests of layers' golden numbers, on the device.
- pooling: max-entropy pooling, bytes it has to move ÷ time, as a share of what a copy of x reaches.
  The least: x read and y written forward; x and two of y read, x written in addition with backward.
- step: of whole networks in bfloat16 beside PyTorch's compiled ones, see train_step.py.
- layer: each layer in float32 and bfloat16, at one size, beside the original and the original under
  `torch.compile`, see layers.py.
- profile: where the time of the layer with the lowest ratio goes.
- digits, sweep: a short run each.

It never ran on a GPU. `--tiny` measures all of it on this machine's CPU at sizes that mean nothing,
to show that it runs.
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import layers
import train_step
from tables import quartiles

from sop import ops
from sop.errors import UsageError
from sop.training.durable import write_json

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = "tests/layers/test_golden_layers.py"
DIGITS = ("--config=configs/digits.py", "--config.num_epochs=1")
POOLINGS = {"2×2/2": ((2, 2), (2, 2), (0, 0)), "3×3/2": ((3, 3), (2, 2), (1, 1))}
DTYPES = ("float32", "bfloat16")


def device():
    """What a process of its own finds: this one leaves the GPU's memory to those that measure."""
    found = alone(_device)
    if found[0] != "gpu":
        raise UsageError(f"There is no GPU: JAX finds {found[1]}. See --tiny.")
    return found[1]


def _device():
    return jax.devices()[0].platform, jax.devices()[0].device_kind


def alone(function, *arguments):
    """function(*arguments) in a process that ends with it.

    Raises:
      RuntimeError: it failed.
    """
    spawn = multiprocessing.get_context("spawn")
    pipe, end = spawn.Pipe()
    process = spawn.Process(target=_send, args=(end, function, *arguments))
    process.start()
    end.close()
    try:
        answer, failure = pipe.recv()
    except EOFError:
        answer, failure = None, "its process ended, perhaps for lack of memory"
    process.join()
    if failure:
        raise RuntimeError(failure)
    return answer


def _send(pipe, function, *arguments):
    try:
        pipe.send((function(*arguments), None))
    except Exception as error:
        pipe.send((None, f"{type(error).__name__}: {error}"))


def command(*words):
    """Seconds of a Python command and the last line that it says.

    Raises:
      RuntimeError: it ended with an error that is not one of a test.
    """
    begun = time.monotonic()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines() or [""]
    if done.returncode and "pytest" not in words:
        raise RuntimeError(lines[-1])
    return {"said": lines[-1], "seconds": round(time.monotonic() - begun)}


def pooling(name, shape, repetitions):
    """Share of a copy's bandwidth, forward and with backward."""
    window, strides, padding = POOLINGS[name]
    x = jnp.ones(shape, jnp.bfloat16)
    softness = jnp.ones((shape[0], 1, 1, shape[3]), jnp.float32)

    def pool(x, softness):
        return ops.max_entropy_pool(x, softness, window, strides, padding)

    def both(x, softness, cotangent):
        y, pullback = jax.vjp(pool, x, softness)
        return y, pullback(cotangent)

    y = jax.eval_shape(pool, x, softness)
    y = jnp.ones(y.shape, y.dtype)
    runs = {
        "copy": (2 * x.nbytes, jax.jit(jnp.negative), (x,)),
        "forward": (x.nbytes + y.nbytes, jax.jit(pool), (x, softness)),
        "both": (3 * x.nbytes + 2 * y.nbytes, jax.jit(both), (x, softness, y)),
    }
    timed = [lambda f=f, a=a: jax.block_until_ready(f(*a)) for _, f, a in runs.values()]
    seconds = layers.interleaved(timed, repetitions)
    speeds = {name: size / s for (name, (size, *_)), s in zip(runs.items(), seconds, strict=True)}
    shares = {f"{n} ÷ copy": quartiles(speeds[n] / speeds["copy"]) for n in ("forward", "both")}
    return {"copy GB/s": float(speeds["copy"].mean() / 1e9), **shares}


def layer(number, arguments):
    """See `layers.measure`; 'compiled': the original under `torch.compile`."""
    case = shrunk(layers.cases()[number], arguments)
    row = layers.measure(case, arguments)
    if arguments.originals is not None and case.theirs is not None and not arguments.tiny:
        arguments = argparse.Namespace(**{**vars(arguments), "compile": True})
        try:
            row["compiled"] = layers.measure(case, arguments)
        except Exception as error:  # of torch.compile, which does not take all of their code
            row["compiled"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return row


def profile(number, arguments):
    """The ten longest operations of a layer."""
    arguments = argparse.Namespace(**{**vars(arguments), "profile": True, "originals": None})
    return layer(number, arguments)["profile"][:10]


def shrunk(case, arguments):
    return dataclasses.replace(case, batch=2, size=min(case.size, 8)) if arguments.tiny else case


def step(name, arguments):
    """See `train_step.measure`."""
    case = train_step.CASES[name]
    without = case.without and train_step.Worker(train_step.ours, *case.without, arguments)
    try:
        return train_step.measure(name, case, without, arguments)
    finally:
        if without:
            with contextlib.suppress(RuntimeError):
                without(0)


def jobs(arguments):
    """(name, function that measures its row), the most important first."""
    platform = "cpu" if arguments.tiny else "cuda"
    os.environ["JAX_PLATFORMS"] = platform  # of the tests, which set "cpu" otherwise
    golden = ("-m", "pytest", "-p", "no:cacheprovider", GOLDEN)
    yield "golden", partial(command, *golden, *(("-k", "cgd") if arguments.tiny else ()))
    shape = (2, 8, 8, 4) if arguments.tiny else (128, 112, 112, 64)
    for name in POOLINGS:
        yield f"pooling {name}", partial(alone, pooling, name, shape, arguments.repetitions)
    of_steps = argparse.Namespace(
        originals=arguments.originals,
        batch=2 if arguments.tiny else 256,
        image_size=64 if arguments.tiny else 224,
        dtype="bfloat16",
        steps=1 if arguments.tiny else 10,
        repetitions=arguments.repetitions,
        compile=not arguments.tiny,
    )
    for name in arguments.networks.split(","):
        yield f"step {name}", partial(step, name, of_steps)
    first = {case.name: number for number, case in reversed([*enumerate(layers.cases())])}
    for dtype in DTYPES:
        of_layers = argparse.Namespace(
            **{**vars(arguments), "dtype": dtype, "profile": False, "compile": False}
        )
        for name, number in sorted(first.items(), key=lambda each: each[1]):
            yield f"layer {name}, {dtype}", partial(alone, layer, number, of_layers)
    with tempfile.TemporaryDirectory() as folder:
        run = ("main.py", *DIGITS, f"--workdir={folder}/run")
        yield "digits", partial(command, *run)
        sweep = ("-m", "sop.sweep", *DIGITS, "--config.batch_size=360", f"--workdir={folder}/sweep")
        grid = "--grid=model.representation.name=gavp,mpncov"
        yield "sweep", partial(command, *sweep, grid)


def slowest(rows):
    """Number and type of the case that is the slowest beside its original; or None."""
    numbers = {case.name: number for number, case in reversed([*enumerate(layers.cases())])}
    ratios = {name: row["both ratio"][0] for name, row in rows.items() if "both ratio" in row}
    if not ratios:
        return None
    name, dtype = min(ratios, key=ratios.get).removeprefix("layer ").rsplit(", ", 1)
    return numbers[name], dtype


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--originals", type=Path, metavar="DIR")
    parser.add_argument("--networks", default=",".join(train_step.CASES))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=38.0, help="no row is begun after so many")
    parser.add_argument("--rows", type=Path, default=ROOT / "benchmarks/gpu.json")
    parser.add_argument("--tiny", action="store_true", help="on the CPU, to show that it runs")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    return parser


def main():
    arguments = make_parser().parse_args()
    begun = time.monotonic()
    try:
        machine = "tiny" if arguments.tiny else device()
    except UsageError as error:
        sys.exit(str(error))
    if arguments.tiny:
        jax.config.update("jax_platforms", "cpu")
    saved = json.loads(arguments.rows.read_text("utf-8")) if arguments.rows.exists() else {}
    rows = saved.setdefault(f"{machine}, jax {jax.__version__}", {})

    def add(name, measured):
        if name in rows or arguments.only not in name:
            return
        if time.monotonic() - begun > arguments.minutes * 60:
            print(f"{name} is left for the next time.")
            return
        try:
            rows[name] = measured()
        except RuntimeError as error:
            print(f"{name} does not run: {error}", file=sys.stderr)
            return
        write_json(arguments.rows, saved)
        print(f"{name}: {rows[name]}", flush=True)

    for name, measured in jobs(arguments):
        add(name, measured)
    if worst := slowest(rows):
        number, dtype = worst
        options = argparse.Namespace(**{**vars(arguments), "dtype": dtype, "compile": False})
        add("profile", lambda: {"operations": alone(profile, number, options)})


if __name__ == "__main__":
    main()
