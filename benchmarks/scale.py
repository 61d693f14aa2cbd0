"""What grows with chips, examples and files, counted and timed on any machine.

`python benchmarks/scale.py` prints three markdown tables:

- all-reduce: of float32 gradients among n chips, each of which sends 2 (n − 1)/n of them, at the
  published bandwidth out of a chip, all its links together; a bound. "step": the least time of one
  with 128 images a chip, from compiled.json, see compile.py. "images": of a chip, at which step and
  all-reduce would take as long. "cores": of the CPU that decode for one chip, by 446 images a
  second, see input_pipeline.py.
- order: of an epoch's examples, its start and one index in batches of 1,024; memory it holds.
- folder: of --files empty images in 1,000 classes, made under --scratch and removed: how long it
  takes to open, and the memory that it takes.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from compile import CHIPS, NETWORKS, ROOT
from tables import print_header, print_row
from train_step import resident_peak

from sop.config.command_line import load
from sop.data import randomness
from sop.data.folders import FolderSource
from sop.models import create_model
from sop.training.state import init_variables

# Published: bytes/s out of a chip; chips of the largest mesh of one interconnect.
LINKS = {"v5e": (200e9, 256), "v6e": (448e9, 256), "v5p": (600e9, 8960)}
IMAGES, DECODED = 128, 446


def gradient_bytes(name):
    """Of all parameters in float32."""
    file, changes = NETWORKS[name]
    config = load(str(ROOT / file))
    with config.unlocked():
        config.model.update(changes)
    model = create_model(config.model)
    shapes = jax.eval_shape(partial(init_variables, model, 0, (224, 224, 3)))
    return sum(4 * int(np.prod(x.shape)) for x in jax.tree.leaves(shapes["params"]))


def least_seconds(kind, name):
    """Of a step on one chip of this kind; None: it was not compiled for it."""
    chip = CHIPS[kind]
    rows = json.loads((ROOT / "benchmarks/compiled.json").read_text("utf-8"))
    found = [
        max(row["flops"] / chip.flops, row["bytes"] / chip.bandwidth)
        for row in rows
        if (row["network"], row["topology"].partition(":")[0]) == (name, kind)
        and (row["batch"], row["image_size"], row["remat"]) == (IMAGES, 224, False)
        and "flops" in row
    ]
    return found[-1] if found else None


def all_reduces(chips):
    columns = {"network": "{}", "gradients, MB": "{:.1f}"}
    meshes = [(kind, n) for n in chips for kind, (_, most) in LINKS.items() if n <= most]
    columns |= {f"{n} {kind}, ms": "{:.2f}" for kind, n in meshes}
    columns |= {"step v5e, ms": "{:.1f}", "images": "{:.1f}", "cores": "{:.1f}"}
    print_header(columns)
    for name in NETWORKS:
        size = gradient_bytes(name)
        row = {"network": name, "gradients, MB": size / 1e6}
        for kind, n in meshes:
            row[f"{n} {kind}, ms"] = 2 * (n - 1) / n * size / LINKS[kind][0] * 1e3
        if seconds := least_seconds("v5e", name):
            row["step v5e, ms"] = seconds * 1e3
            row["images"] = IMAGES * 2 * size / LINKS["v5e"][0] / seconds
            row["cores"] = IMAGES / seconds / DECODED
        print_row(columns, row)


def orders(counts):
    columns = {"examples": "{:,}", "start, s": "{:.3f}", "index, μs": "{:.2f}", "MB": "{:.0f}"}
    print_header(columns)
    batch = 1024
    for count in counts:
        begun = time.perf_counter()
        randomness.ordered(0, 0, count, 0, batch)
        start = time.perf_counter() - begun
        begun = time.perf_counter()
        for number in range(100):
            randomness.ordered(0, 0, count, number * batch, (number + 1) * batch)
        index = (time.perf_counter() - begun) / 100 / batch
        held = 8 * count / 1e6 if count <= randomness.LARGEST_ORDER else 0
        row = {"examples": count, "start, s": start, "index, μs": index * 1e6, "MB": held}
        print_row(columns, row)


def folder(count, scratch):
    """Seconds to open, and by how much the largest memory of the process grew."""
    with tempfile.TemporaryDirectory(dir=scratch) as root:
        for split, files in (("train", count), ("test", 1000)):
            for number in range(1000):
                path = Path(root, split, f"class{number:03}")
                path.mkdir(parents=True)
                for name in range(number, files, 1000):
                    (path / f"{name}.jpg").touch()
        before = resident_peak()
        begun = time.perf_counter()
        source = FolderSource(Path(root), "train")
        seconds = time.perf_counter() - begun
        assert len(source) == count
        return {"files": count, "open, s": seconds, "MB": (resident_peak() - before) / 1e6}


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", type=int, nargs="+", default=[8, 256, 1024])
    parser.add_argument("--examples", type=int, nargs="+", default=[10**6, 2**24, 10**9])
    parser.add_argument("--files", type=int, default=0, help="0: the third table is left out")
    parser.add_argument("--scratch", type=Path, help="a folder; default: that of the system")
    return parser


def main():
    arguments = make_parser().parse_args()
    all_reduces(arguments.chips)
    orders(arguments.examples)
    if arguments.files:
        columns = {
            "files": "{:,}",
            "open, s": "{:.1f}",
            "MB": "{:.0f}",
        }
        print_header(columns)
        print_row(columns, folder(arguments.files, arguments.scratch))


if __name__ == "__main__":
    main()
