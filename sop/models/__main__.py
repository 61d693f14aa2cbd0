"""Lists networks and what they cost: python -m sop.models [PATTERN].

A row for each backbone by itself, and for each classifier of the config files in --configs, whose
name or backbone fits PATTERN: parameters, multiply–adds of the forward pass on one image of the
published size, pixels between positions of the last feature map, and its channels. --summary
prints one network layer by layer: of a backbone, or of FILE.py:EXPERIMENT.
"""

import fnmatch
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sop.command import Parser, run
from sop.errors import UsageError
from sop.models import BACKBONES, create_model, get_backbone
from sop.models.catalogue import Cost, cost, numbered
from sop.models.lookup import is_detector
from sop.progress import shown

_PARTS = ("attention", "pool", "norm", "representation")
_CLASSES = 1000


def networks(pattern: str, folder: Path) -> dict[str, Mapping[str, Any]]:
    """Name of a backbone, or FILE.py:EXPERIMENT → config.model, of those that fit a pattern."""
    found: dict[str, Mapping[str, Any]] = {}
    for name in [each for family in BACKBONES for each in numbered(family)]:
        if fnmatch.fnmatchcase(name, pattern):
            found[name] = {"backbone": name, "num_classes": _CLASSES}
    for name, model in _experiments(folder):
        if any(fnmatch.fnmatchcase(each, pattern) for each in (name, model["backbone"])):
            found[name] = model
    return found


def _experiments(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not folder.is_dir():
        return
    sys.path.append(str(folder.resolve().parent))  # for `from configs import …`
    for file in sorted(folder.glob("*.py")):
        for name, experiment in runpy.run_path(str(file)).get("EXPERIMENTS", {}).items():
            model = experiment.make().model
            if not is_detector(model):  # whose costs are others
                yield f"{file.name}:{name}", model


def describe(model: Mapping[str, Any]) -> str:
    """'resnet50 + gsop + mpncov'."""
    parts = [model.get(part) or {} for part in _PARTS]
    names = [part if isinstance(part, str) else part.get("name") for part in parts]
    return " + ".join([model["backbone"], *(name for name in names if name not in (None, "none"))])


def row(name: str, model: Mapping[str, Any], found: Cost) -> tuple[str, ...]:
    """The cells of one network."""
    return (
        name,
        describe(model),
        f"{found.parameters / 1e6:.2f} M",
        f"{found.multiply_adds / 1e9:.3f} G",
        f"{found.image_size}²",
        f"{found.output_stride}",
        f"{found.channels}",
    )


def summary(name: str, folder: Path) -> str:
    """A network layer by layer: inputs, outputs and parameters of each module."""
    model = dict(_experiments(folder)).get(name) or {"backbone": name, "num_classes": _CLASSES}
    network, size = create_model(model), get_backbone(model).image_size
    images = jnp.zeros((1, size, size, 3))
    tabulate = partial(network.tabulate, jax.random.key(0), images, train=False)
    return tabulate(console_kwargs={"force_terminal": False, "width": 160})


def make_parser() -> Parser:
    """The flags of this command."""
    parser = Parser(prog="python -m sop.models", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="with *, ? and […]")
    parser.add_argument("--configs", type=Path, default=Path("configs"), metavar="DIR")
    parser.add_argument("--summary", action="store_true", help="of the one network PATTERN")
    return parser


def main(arguments: Sequence[str]) -> None:
    options = make_parser().parse_args(arguments)
    if options.summary:
        print(summary(options.pattern, options.configs))
        return
    found = networks(options.pattern, options.configs)
    if not found:
        raise UsageError(
            f"No backbone and no experiment fits '{options.pattern}': leave it out to see all."
        )
    heads = ("name", "network", "parameters", "multiply–adds", "image", "stride", "channels")
    parts = ((1, item) for item in found.items())
    rows = [
        row(name, model, cost(model))
        for name, model in shown(parts, len(found), "tracing", "network")
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for cells in (heads, *rows):
        left = [f"{cell:{width}}" for cell, width in zip(cells[:2], widths, strict=False)]
        right = [f"{cell:>{width}}" for cell, width in zip(cells[2:], widths[2:], strict=True)]
        print("  ".join([*left, *right]))


if __name__ == "__main__":
    run(main)
