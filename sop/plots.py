"""Draws the curves of several runs in one picture: python -m sop.plots RUN RUN … --out=FILE.

Runs whose configs differ in the seed alone are drawn as one line, their mean, with a band of one
standard deviation; the legend says in what the others differ.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sop.command import Parser, run
from sop.config import flatten
from sop.config.validation import as_json
from sop.errors import UsageError
from sop.training.history import HISTORY, read_history
from sop.training.plots import History, draw_groups
from sop.training.storage import locate
from sop.training.workdir import run_config

# What says nothing about how a run learns.
_ALIKE = (
    "seed",
    "log_every_steps",
    "compilation_cache",
    "compiler_options",
    "profile",
    "input.num_workers",
)


def group(runs: Sequence[str]) -> dict[str, list[History]]:
    """Histories of work folders by what their configs differ in, 'key=value, …'.

    Raises:
      UsageError: a folder holds no run, or one that has not begun, or is given twice.
    """
    configs: list[dict[str, Any]] = []
    groups: dict[str, list[History]] = {}
    if len({Path(path).resolve() for path in runs}) < len(runs):
        raise UsageError("A run is named twice: give each work folder once.")
    for path in runs:
        config = flatten(as_json(run_config(path)))
        configs.append({key: value for key, value in config.items() if key not in _ALIKE})
    names = _names(configs)
    for path, name in zip(runs, names, strict=True):
        history = read_history(path)
        if not history:
            raise UsageError(f"{locate(path) / HISTORY} holds nothing to draw yet.")
        groups.setdefault(name or Path(path).resolve().name, []).append(history)
    return groups


def _names(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of each config the keys that are not the same in all; one config, or equal ones: ''."""
    keys = dict.fromkeys(key for config in configs for key in config)
    absent = object()

    def differs(key: str) -> bool:
        return any(config.get(key, absent) != configs[0].get(key, absent) for config in configs)

    differing = [key for key in keys if differs(key)]
    return [
        ", ".join(f"{key}={json.dumps(config[key])}" for key in differing if key in config)
        for config in configs
    ]


def make_parser() -> Parser:
    """The flags of this command."""
    parser = Parser(prog="python -m sop.plots", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="work folders")
    parser.add_argument("--out", default="curves.png", metavar="FILE", help="the picture, a PNG")
    return parser


def main(arguments: Sequence[str]) -> None:
    options = make_parser().parse_args(arguments)
    groups = group(options.runs)
    if len(groups) == 1:
        [histories] = groups.values()
        groups = {f"{len(histories)} run(s)": histories}
    draw_groups(options.out, groups, title=f"{len(options.runs)} runs")
    print(f"{options.out}: {len(options.runs)} runs as {len(groups)} lines")


if __name__ == "__main__":
    run(main)
