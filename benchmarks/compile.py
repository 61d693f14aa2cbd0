"""Training steps compiled for TPUs that are not there: what they need, and could do at best.

`python benchmarks/compile.py --topology=v5e:2x2x1` compiles the step that main.py runs, over a
mesh of that topology's chips, with the TPU compiler of `pip install -e '.[tpu]'`; no TPU is needed.
A network takes 200–350 s on two cores. Each row is saved when it is there, in --rows and as a table
in the same file as .md; a program that was compiled before, by the same compiler, is not again.
Columns:

- GFLOP an image, GB a step: the compiler's count for one chip, the bytes those that the compiled
  operations read and write; of branches those of the cheapest, where the compiler counts the
  dearest: batch norm's other one reads its input again for a mean far from the running one.
  GB temporary: what it lays out beside state and batch.
- ms: least time of a step by the published peaks, the larger of FLOP ÷ peak and bytes ÷ bandwidth;
  an upper bound of the speed and no prediction. images/s: of a chip, by it. bound by: which it is.
- share: 1 − t₀/t, t₀ the least time of the same network at the same strides with an ordinary
  layer in the method's place. GB above: more bytes than that.
- collectives: how many, and MB that they take in.
- fits: images of a chip that its memory holds, if all but the state grows with the batch.

--networks takes names of `NETWORKS` and experiments, `configs/FILE.py:NAME`.
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import tables
import train_step
from jax.experimental import topologies

from sop.config.command_line import load
from sop.errors import UsageError
from sop.training.durable import write_atomically, write_json
from sop.training.memory import needed_bytes
from sop.training.programs import training_program
from sop.training.step import make_mesh

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peaks: FLOP/s in bfloat16, bytes/s of its memory, bytes of that."""

    flops: float
    bandwidth: float
    memory: float


CHIPS = {
    "v5e": Chip(197e12, 819e9, 16e9),
    "v6e": Chip(918e12, 1640e9, 32e9),
    "v5p": Chip(459e12, 2765e9, 95e9),
}
MAX = ("configs/imagenet.py:resnet50_gfgp", {"pool": {"name": "max"}})
METHODS = {
    **train_step.CASES,
    "gfgp": dataclasses.replace(train_step.CASES["gfgp"], without=MAX),
}
ORDINARY = {"gavp": train_step.PLAIN, "gavp_stride1": train_step.STRIDE_1, "gfgp_max": MAX}
NETWORKS = ORDINARY | {name: (case.config, case.changes) for name, case in METHODS.items()}
WITHOUT = {
    name: next(plain for plain, network in ORDINARY.items() if network == case.without)
    for name, case in METHODS.items()
    if case.without
}
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
COLUMNS = {
    "network": "{}",
    "topology": "{}",
    "images a chip": "{}",
    "compiles": "{}",
    "GFLOP an image": "{:.1f}",
    "GB a step": "{:.1f}",
    "GB temporary": "{:.1f}",
    "ms": "{:.1f}",
    "bound by": "{}",
    "images/s": "{:,.0f}",
    "share": "{:.1%}",
    "GB above": "{:+.1f}",
    "collectives": "{}",
    "fits": "{}",
}


def program(name, devices, arguments):
    """The training step of a network, lowered for a mesh of these devices."""
    file, changes = NETWORKS.get(name, (name, {}))
    config = load(str(ROOT / file))
    with config.unlocked():
        config.model.update(changes)
    config.dtype, config.remat = arguments.dtype, arguments.remat
    config.batch_size = arguments.batch * len(devices)
    size = arguments.image_size
    rows = {"image": ((size, size, 3), jnp.uint8), "label": ((), jnp.int32)}
    return training_program(config, make_mesh(devices), rows).lower()


def collectives(text):
    """Number of the collective operations in a compiled program, and bytes of their results."""
    kinds = "|".join(COLLECTIVES)
    found = re.findall(rf"= (.*?) (?:{kinds})(?:-start)?\(", text)
    return len(found), sum(bytes_of(types) for types in found)


def bytes_of(types):
    """Of all arrays in 'f32[2,3]{1,0}' or '(f32[2,3]{1,0}, bf16[])'."""
    arrays = re.findall(r"\b(pred|[a-z]+(\d+))\[([\d,]*)\]", types)
    return sum(
        int(bits or 8) // 8 * math.prod(int(n) for n in sizes.split(",") if n)
        for _, bits, sizes in arrays
    )


# Operations that move nothing, or are counted elsewhere.
UNCOUNTED = ("parameter", "constant", "bitcast", "tuple", "get-tuple-element", "conditional")


def computations(text):
    """Name → lines, of a compiled program."""
    found = re.findall(r"^(?:ENTRY )?%(\S+) [^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    return {name: body.splitlines() for name, body in found}


def operations(lines):
    """Kind, line, and bytes that are read and written, of each operation of a computation."""
    sizes = {}
    for line in lines:
        found = re.match(r"\s*(?:ROOT )?%?(\S+) = (.*?) ([\w-]+)\((.*?)\)", line)
        if not found:
            continue
        name, types, kind, operands = found.groups()
        sizes[name] = bytes_of(types)
        if kind in UNCOUNTED or kind.endswith("-done"):  # counted where it started
            continue
        read = (sizes.get(each.split()[-1].lstrip("%"), 0) for each in operands.split(", ") if each)
        yield kind, line, sizes[name] + sum(read)


def not_taken(text):
    """Bytes by which the dearest branch of each conditional, which the compiler counts, is above
    the cheapest.
    """
    bodies = computations(text)

    def moved(name):
        return sum(size for *_, size in operations(bodies[name]))

    found = re.findall(r" conditional\(.*branch_computations=\{(.*?)\}", text)
    if len(found) != text.count(" conditional("):
        raise ValueError("A conditional is written in another way, and its branches are not seen.")
    branches = ([moved(name.strip(" %")) for name in names.split(",")] for names in found)
    return sum(max(each) - min(each) for each in branches)


def measure(lowered, images):
    """What the compiler says of a program for one chip."""
    begun = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return {"refused": said(error)}
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    need = needed_bytes(compiled)
    state = memory.alias_size_in_bytes
    text = compiled.as_text()
    number, size = collectives(text)
    other = not_taken(text)
    return {
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"] - other,
        "bytes not taken": other,
        "temporary": memory.temp_size_in_bytes,
        "state": state,
        "an image": (need - state) / images,
        "collectives": [number, int(size)],
        "seconds": round(time.monotonic() - begun),
    }


def said(error):
    """How much memory was asked for, or else the first line."""
    found = re.search(r"Used (\S+) of (\S+) hbm", str(error))
    return f"{found[1]} of {found[2]}" if found else str(error).splitlines()[0]


def row_of(known, everyone):
    """A row of the table; `everyone`: those of the same topology, batch and type, by name."""
    chip = CHIPS[known["topology"].partition(":")[0]]
    row = {"network": known["network"], "topology": known["topology"]}
    row["images a chip"] = known["batch"]
    if known["remat"]:
        row["network"] += ", remat"
    if "refused" in known:
        return {**row, "compiles": f"no: {known['refused']}"}
    seconds = {"FLOP": known["flops"] / chip.flops, "bytes": known["bytes"] / chip.bandwidth}
    least = max(seconds.values())
    row |= {
        "compiles": "yes",
        "GFLOP an image": known["flops"] / known["batch"] / 1e9,
        "GB a step": known["bytes"] / 1e9,
        "GB temporary": known["temporary"] / 1e9,
        "ms": least * 1e3,
        "bound by": max(seconds, key=seconds.get),
        "images/s": known["batch"] / least,
        "collectives": "{}, {:.1f} MB".format(
            known["collectives"][0], known["collectives"][1] / 1e6
        ),
        "fits": int((chip.memory - known["state"]) / known["an image"]),
    }
    without = everyone.get(WITHOUT.get(known["network"]), {})
    if "bytes" in without:
        before = row_of(without, {})
        row["share"] = 1 - before["ms"] / row["ms"]
        row["GB above"] = row["GB a step"] - before["GB a step"]
    return row


def alike(a, b):
    """Whether rows are of one table but for the network."""
    names = ("topology", "batch", "dtype", "remat", "image_size", "versions")
    return all(a[name] == b[name] for name in names)


def table(rows):
    """The newest row of each network, topology, batch and type, by topology and as `NETWORKS`."""
    order = {name: number for number, name in enumerate(NETWORKS)}

    def place(known):
        return known["topology"], order.get(known["network"], len(order))

    lines = [tables.header(COLUMNS)]
    for known in sorted(rows, key=place):
        everyone = {each["network"]: each for each in rows if alike(each, known)}
        if everyone[known["network"]] is known:
            lines.append(tables.line(COLUMNS, row_of(known, everyone)))
    return "\n".join(lines) + "\n"


def page(rows):
    peaks = "; ".join(
        f"{name} {chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e9:.0f} GB/s, "
        f"{chip.memory / 1e9:.0f} GB"
        for name, chip in CHIPS.items()
    )
    versions = "; ".join(sorted({each["versions"] for each in rows}))
    kinds = ", ".join(sorted({f"{each['image_size']} pixels, {each['dtype']}" for each in rows}))
    return (
        "# Training steps compiled for TPUs\n\nPrinted by `benchmarks/compile.py`, whose head says "
        f"what the columns are; by the compiler alone, nothing ran.\n{kinds}; {versions}. "
        f"Published peaks of a chip: {peaks}.\n\n{table(rows)}"
    )


def versions():
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu"))


def devices_of(topology):
    """The chips of a topology, of which this machine needs none.

    Raises:
      UsageError: it has no published peaks here, or the compiler does not know it or is not there.
    """
    kind = topology.partition(":")[0]
    if kind not in CHIPS:
        raise UsageError(f"There is no chip {kind!r}. There are: {', '.join(CHIPS)}.")
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError("There is no TPU compiler: pip install -c constraints.txt -e '.[tpu]'.")
    jax.config.update("jax_platforms", "cpu")
    # Otherwise libtpu would look for a TPU, and ask the cloud's server about it.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE="v5litepod-4",
        TPU_WORKER_HOSTNAMES="localhost",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # several compilers at once
    )
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except jax.errors.JaxRuntimeError as error:
        raise UsageError(f"The compiler refuses topology {topology!r}: {error}") from error
    return list(found.devices)


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    chips = "|".join(CHIPS)
    parser.add_argument("--topology", default="v5e:2x2x1", help=f"({chips}):SHAPE")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names, with commas between")
    parser.add_argument("--batch", type=int, default=128, help="images a chip")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--remat", action="store_true", help="config.remat")
    parser.add_argument("--rows", type=Path, default=ROOT / "benchmarks/compiled.json")
    return parser


def main():
    arguments = make_parser().parse_args()
    try:
        devices = devices_of(arguments.topology)
    except UsageError as error:
        sys.exit(str(error))
    rows = json.loads(arguments.rows.read_text("utf-8")) if arguments.rows.exists() else []
    for name in arguments.networks.split(","):
        lowered = program(name, devices, arguments)
        key = {
            "network": name,
            **{k: getattr(arguments, k) for k in ("topology", "batch", "dtype", "remat")},
            "image_size": arguments.image_size,
            "versions": versions(),
            "program": hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16],
        }
        if any(key.items() <= known.items() for known in rows):
            continue
        rows.append({**key, **measure(lowered, arguments.batch), "date": time.strftime("%F")})
        write_json(arguments.rows, rows)
        write_atomically(arguments.rows.with_suffix(".md"), page(rows))
        print(f"{name}: {rows[-1]}", file=sys.stderr)
    print(table([each for each in rows if alike(each, key)]))


if __name__ == "__main__":
    main()
