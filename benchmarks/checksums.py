"""What checksums add to the writing of a checkpoint.

`python benchmarks/checksums.py [--repeats=5]` saves the state of a ResNet-50 with momentum again
and again, with and without checksums in turns, and prints seconds until a checkpoint has its name.
The training loop waits for none of them: they are written in the background.
"""

import argparse
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
import optax
from tables import RATIO, print_header, print_row, quartiles

from sop.models import create_model
from sop.training import checkpoints, variables
from sop.training.state import init_state, init_variables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    model = create_model({"backbone": "resnet50", "num_classes": 1000})
    shapes = jax.eval_shape(lambda: init_variables(model, 0, (224, 224, 3)))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    state = init_state(jax.tree.unflatten(tree, drawn), optax.sgd(0.1, momentum=0.9))
    seconds = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats + 1):
            for kind, times in seconds.items():
                times.append(_save(Path(folder, f"{kind}{repeat}"), state, kind == "with"))
    ratios = [a / b for a, b in zip(seconds["with"], seconds["without"], strict=True)]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    columns = {"state, MB": "{:.0f}", "without, s": RATIO, "with, s": RATIO, "ratio": RATIO}
    values = [size / 1e6, *(quartiles(each[1:]) for each in (*seconds.values(), ratios))]
    print_header(columns)
    print_row(columns, dict(zip(columns, values, strict=True)))


def _save(workdir: Path, state, checksums: bool) -> float:
    write = variables.write_checksums if checksums else lambda folder: None
    with mock.patch.object(variables, "write_checksums", write):
        writer = checkpoints.Checkpoints(workdir)
        begun = time.perf_counter()
        writer.save(state, {"epoch": 1.0, "report": {}})
        writer.latest_step()  # waits
        taken = time.perf_counter() - begun
        writer.close()
    return taken


if __name__ == "__main__":
    main()
