"""Exports a run: python -m sop.export --workdir=RUN --out=FOLDER.

The folder then holds the network as a program of its own, `model.stablehlo`, which takes uint8
images [batch, height, width, 3] after the run's evaluation transforms and gives logits, or what a
detector finds, on CPUs, GPUs and TPUs; its weights under the names of the original's PyTorch code,
`model.safetensors`; the config; and a card, `README.md`. `sop.load` and `config.init_from` read it
back.
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sop.command import Parser, disk_folder, folder, run
from sop.config.validation import as_json
from sop.errors import UsageError
from sop.torch_weights import has_names
from sop.training.durable import write_atomically, write_json
from sop.training.exported import FACTS, PROGRAM, WEIGHTS, to_tensors
from sop.training.history import evaluation_at
from sop.training.provenance import read_provenance
from sop.training.scores import describe
from sop.using import Detector, load
from sop.using.images import evaluation_pipeline, evaluation_transforms
from sop.using.loaded import Loaded

PLATFORMS = ("cpu", "cuda", "tpu")
# By how much of the largest number the exported program may differ from the run.
_TOLERANCE = 1e-5


def program(loaded: Loaded, shape: Sequence[int]) -> jax.export.Exported:
    """The network of a run with its weights inside: uint8 [b, H, W, 3] → logits float32 [b, K].

    `b` may be any number; normalisation is part of it. Of a detector see
    `sop.using.Detector.arguments` and `compute`.

    Args:
      loaded: the run.
      shape: (H, W, 3) of an image.
    """
    variables = jax.device_get(loaded.variables)

    (batch,) = jax.export.symbolic_shape("b")
    shapes = (
        jax.ShapeDtypeStruct((batch, *each.shape[1:]), each.dtype)
        for each in loaded.arguments(np.zeros((1, *shape), np.uint8))
    )
    answer = jax.jit(partial(loaded.compute, variables))
    return jax.export.export(answer, platforms=PLATFORMS)(*shapes)


def image_shape(loaded: Loaded, size: int | None) -> tuple[int, int, int]:
    """(H, W, 3) of the images that the program takes, `size`² or as the transforms end.

    Raises:
      UsageError: the transforms do not tell.
    """
    found = (size, size) if size else evaluation_pipeline(loaded.config).output_size(None)
    if found is None:
        _, text = evaluation_transforms(loaded.config)
        raise UsageError(
            f"The evaluation transforms, '{text}', leave open how large images are: name the side "
            "of a square, --image_size=224."
        )
    return (*found, 3)


def export(loaded: Loaded, out: str | Path, size: int | None = None) -> float | None:
    """Writes the folder; see the module. The program is read again and run.

    Args:
      loaded: the run.
      out: a new folder.
      size: see `image_shape`.
    Returns:
      See `check`.
    Raises:
      UsageError: the folder is not empty, a library is missing, or as `check`.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"--out={out} is not empty: choose another folder.")
    for library in ("flatbuffers", "safetensors"):  # jax.export's files; ours
        if importlib.util.find_spec(library) is None:
            raise UsageError(
                f"Exporting needs {library}; install it with `pip install -e '.[export]'`."
            )
    from safetensors.numpy import save

    shape = image_shape(loaded, size)
    serialized = program(loaded, shape).serialize()
    difference = check(serialized, loaded, shape)
    variables = jax.device_get(loaded.variables)
    weights = to_tensors(variables, loaded.config.model)
    facts = {
        "step": loaded.step,
        "epoch": loaded.epoch,
        "class_names": list(loaded.class_names),
        "image_shape": list(shape),
        "scores": evaluation_at(loaded.workdir, loaded.step),
        "runs": read_provenance(loaded.workdir),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / PROGRAM, bytes(serialized))
    write_atomically(out / WEIGHTS, save({k: np.ascontiguousarray(v) for k, v in weights.items()}))
    write_json(out / "config.json", as_json(loaded.config))
    write_json(out / FACTS, facts)
    write_atomically(out / "README.md", card(loaded, facts).encode())
    return difference


def check(serialized: bytes | bytearray, loaded: Loaded, shape: Sequence[int]) -> float | None:
    """The largest difference of what an exported program and the run say of two batches of noise.

    It is a part of the largest number of its kind: of the logits; of boxes, of scores, …. None:
    neither finds anything there.

    Raises:
      UsageError: it is more than rounding.
    """
    again = jax.export.deserialize(bytearray(serialized))
    draw = np.random.default_rng(0)
    differences, found = [], False
    for count in (1, 3):
        images = draw.integers(0, 256, (count, *shape), dtype=np.uint8)
        arguments = loaded.arguments(images)
        expected = loaded.answers(*arguments)
        pairs = jax.tree.map(_difference, again.call(*arguments), expected)
        differences += jax.tree.leaves(pairs)
        found |= any(np.any(each) for each in jax.tree.leaves(expected))
    if not max(differences) < _TOLERANCE:
        raise UsageError(
            f"What the exported program says differs from the run's by {max(differences):.1e} of "
            f"the largest, more than {_TOLERANCE:g}: nothing was written; please report this "
            "network."
        )
    return max(differences) if found else None


def _difference(found: jax.Array, expected: jax.Array) -> float:
    """Of arrays, as a part of the largest number; of what is nowhere, none."""
    found, expected = (np.asarray(each, np.float64) for each in (found, expected))
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1.0))


# What a card's two snippets do with an image.
_CLASSIFIES = (
    'print(run.predict("image.png"))',
    "logits = program.call(np.zeros((1, {height}, {width}, 3), np.uint8))",
)
_DETECTS = (
    '[found] = run.detect("image.png")\nprint(found.boxes, found.scores, found.labels)',
    """images = np.zeros((1, {height}, {width}, 3), np.uint8)
sizes = np.float32([[{height}, {width}]])  # height and width of what is not padding
found = program.call(images, sizes)
print(found["boxes"][found["valid"]])  # (x1, y1, x2, y2) in pixels of `images`""",
)


def card(loaded: Loaded, facts: Mapping[str, Any]) -> str:
    """What stands in the folder's README.md."""
    config = loaded.config
    height, width, _ = facts["image_shape"]
    scores = facts["scores"]
    found = f"{describe(scores)}, on {scores['count']:,} examples" if scores else "not evaluated"
    names = ", ".join(loaded.class_names[:20])
    more = f", … ({len(loaded.class_names):,} in all)" if len(loaded.class_names) > 20 else ""
    detects = isinstance(loaded, Detector)
    with_sop, without = _DETECTS if detects else _CLASSIFIES
    what = f"{config.model.detector.name} on " if detects else ""
    named = has_names(config.model)
    whose = "names that the original's PyTorch code gives them" if named else "paths that Flax has"
    return f"""# {what}{config.model.backbone} on {config.input.dataset}

| | |
| --- | --- |
| model | `{json.dumps(as_json(config)["model"])}` |
| trained on | `{config.input.dataset}`, split `{config.input.train_split}` |
| trained for | {loaded.epoch:.1f} epochs, {loaded.step:,} steps |
| evaluated on | split `{config.input.eval_split}`: {found} |
| images | uint8 RGB, {height}×{width}, after `{config.input.eval_transforms}`; normalised inside |
| classes | {names}{more} |
| licence | not stated: yours to give, mind that of the data |

`config.json` is the whole recipe, `{FACTS}` says where and with what it was trained.

```python
import sop

run = sop.load("FOLDER")  # this folder; `--config.init_from=FOLDER` starts a training from it
{with_sop}
```

Without sop, on CPU, GPU or TPU, any number of images at once:

```python
import jax
import numpy as np

program = jax.export.deserialize(bytearray(open("FOLDER/{PROGRAM}", "rb").read()))
{without.format(height=height, width=width)}
```

`{WEIGHTS}` has the parameters under the {whose}.
"""


def make_parser() -> Parser:
    """The flags of this command."""
    parser = Parser(prog="python -m sop.export", description=__doc__)
    parser.add_argument("--workdir", required=True, type=folder, metavar="RUN")
    parser.add_argument(
        "--out", required=True, type=disk_folder, metavar="FOLDER", help="a new folder"
    )
    parser.add_argument("--checkpoint", default="best", help="best, latest or a step")
    parser.add_argument(
        "--image_size", type=int, metavar="S", help="of square images; default: as the run's are"
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    options = make_parser().parse_args(arguments)
    loaded = load(options.workdir, options.checkpoint)
    difference = export(loaded, options.out, options.image_size)
    if difference is None:
        print("The program finds nothing in noise, nor does the run: compare them on real images.")
    else:
        print(f"What program and run say of noise differs by {difference:.1e} of the largest.")
    print(f"Step {loaded.step} of {options.workdir} is in {options.out}: {PROGRAM}, {WEIGHTS}")


if __name__ == "__main__":
    run(main)
