"""Kills a run at random moments until it is through, and compares it with one never stopped.

`python -m tests.kill_and_resume [--kills=5] [--seed=0] [--bucket] [main.py arguments]` prints where
each kill fell and exits with 1 unless parameters, optimizer state and metrics are equal bit for
bit. With `--bucket` the killed run's work folder is in a bucket, see `tests.bucket`. Without
arguments for main.py the run is six epochs of a small network on the digits, with a checkpoint
every third step, so that kills fall into saves as well.
"""

import argparse
import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from sop.training.saved import steps_in
from sop.training.storage import locate
from tests.bucket import serving
from tests.launch import launch, run

DIGITS = (
    "--config=configs/digits.py",
    "--config.model.backbone=resnet8_cifar",
    "--config.num_epochs=6",
    "--config.checkpoint.every_steps=3",
)


def newest_step(workdir: str | Path) -> int:
    """Of the whole checkpoints."""
    return max(steps_in(workdir), default=0)


def complete(workdir: str | Path, arguments: Sequence[str]) -> str:
    """Runs to the end; the last line."""
    code, output = run("main.py", f"--workdir={workdir}", *arguments, timeout=3600)
    if code:
        raise SystemExit(f"The run failed with {code}:\n{output}")
    return output.splitlines()[-1]


def final_state(workdir: str | Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by item and name."""
    step = locate(workdir) / "checkpoints" / str(newest_step(workdir))
    arrays = {}
    for item in ("variables", "ema", "optimizer"):
        if not (step / item).exists():
            continue
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(step / item).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            saved = reader.restore(step / item, restore_args=as_numpy)
        for name, array in ocp.tree.to_flat_dict(saved, sep="/").items():
            arrays[f"{item}/{name}"] = array
    return arrays


def unequal(a: str | Path, b: str | Path) -> list[str]:
    """What differs between the ends of two runs: names of arrays and of files of metrics."""
    a, b = locate(a), locate(b)
    first, second = final_state(a), final_state(b)
    found = [f"state has {name} in one run only" for name in first.keys() ^ second.keys()]
    found += [
        f"{name} differs"
        for name in first.keys() & second.keys()
        if first[name].tobytes() != second[name].tobytes()
    ]
    if (a / "history.jsonl").read_text() != (b / "history.jsonl").read_text():
        found.append("history.jsonl differs")
    results = [json.loads((run / "results.json").read_text()) for run in (a, b)]
    found += [
        f"results.json differs in {key}"
        for key in results[0].keys() | results[1].keys()
        if key not in ("timing", "device_kind") and results[0].get(key) != results[1].get(key)
    ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--bucket", action="store_true")
    options, arguments = parser.parse_known_args()
    arguments = arguments or list(DIGITS)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as served:
        whole, broken = Path(folder, "whole"), f"{folder}/broken"
        if options.bucket:
            served.enter_context(serving("stand-in"))
            broken = "gs://stand-in/broken"
        print(complete(whole, arguments), flush=True)
        # The first checkpoints may be gone at the end; the moments spread over the whole run.
        last = newest_step(whole)
        targets = sorted(rng.sample(range(1, last), options.kills))
        for target in targets:
            process = launch("main.py", f"--workdir={broken}", *arguments)
            while newest_step(broken) < target and process.poll() is None:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            print(f"Killed after checkpoint {newest_step(broken)} of {last} steps.", flush=True)
        print(complete(broken, arguments), flush=True)
        found = unequal(whole, broken)
    print("\n".join(found) or "Equal bit for bit: parameters, optimizer state and metrics.")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
