"""A finished run as one row: what it was, what it found, what it cost, where it ran."""

import csv
import functools
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sop.config import KEYS, flatten, stage_configs
from sop.config.validation import as_json
from sop.detection import create_network
from sop.errors import UsageError
from sop.models.catalogue import of_forward_pass, shapes
from sop.progress import shown
from sop.results.robustness import Robustness, examine
from sop.sweep.progress import read_results
from sop.training.durable import write_atomically
from sop.training.provenance import read_provenance
from sop.training.saved import saved_progress
from sop.training.scores import CLASSIFICATION, DETECTION, Measures, measures
from sop.training.task import task_of
from sop.training.workdir import run_config, with_whole_model

Row = Mapping[str, Any]


def _fields(judged: Measures, *others: str) -> tuple[str, ...]:
    return (
        *("method", "seed", "dataset", "train_split", "eval_split", "eval_transforms", "examples"),
        *("count", *(each.name for each in judged), *others),
        *("learning_rate", "lr_multipliers", "parameters", "multiply_adds"),
        *("config", "commit", "dirty", "machine", "jax", "seconds", "start"),
    )


# What the row of a classifier holds, in this order; a caller may put further ones in front.
FIELDS = _fields(CLASSIFICATION, "loss", "epoch", *Robustness._fields)
_FIELDS_OF = {CLASSIFICATION: FIELDS, DETECTION: _fields(DETECTION, "epoch")}
_NUMBERS = {
    **dict.fromkeys(("seed", "examples", "count", "parameters", "multiply_adds"), int),
    **dict.fromkeys((each.name for each in (*CLASSIFICATION, *DETECTION)), float),
    **dict.fromkeys(("loss", "epoch", "learning_rate", "seconds", *Robustness._fields), float),
    **{"images_per_second": float, "memory": int},
}


def record(workdir: Path, method: str, robustness: bool = False) -> Row:
    """The row of a run that has finished.

    Args:
      method: what it is called, without the seed.
      robustness: whether its network is examined, see `sop.results.robustness`.
    Raises:
      UsageError: the folder holds no run with results.
    """
    config, found = run_config(workdir), read_results(workdir)
    if found is None:
        raise UsageError(f"The run in {workdir} has no results yet: let it finish first.")
    fields = _FIELDS_OF[measures(found)]
    last = stage_configs(config)[-1]
    entries = read_provenance(workdir)
    newest = entries[-1] if entries else {}
    data = saved_progress(workdir).get("data")
    row = {
        **{name: found.get(name) for name in fields if name in found},
        **(examine(workdir)._asdict() if robustness else {}),
        "method": method,
        "seed": config.seed,
        "train_split": last.input.train_split,
        "examples": data[-1]["train"]["examples"] if data else None,
        "learning_rate": last.optimizer.learning_rate,
        "lr_multipliers": ", ".join(
            f"{pattern} × {factor:g}"
            for pattern, factor in last.optimizer.lr_multipliers
            if factor != 1
        ),
        "multiply_adds": multiply_adds(config),
        "config": fingerprint(config),
        "commit": (newest.get("git") or {}).get("commit"),
        "dirty": (newest.get("git") or {}).get("dirty"),
        "machine": _machine(newest),
        "jax": newest.get("packages", {}).get("jax"),
        "seconds": sum(entry.get("seconds") or 0 for entry in entries),
        "start": entries[0]["start"] if entries else None,
    }
    return {name: row.get(name) for name in fields}


def fingerprint(config: ConfigDict) -> str:
    """Ten hexadecimal digits that stand for what a config says of a result.

    They are those of the config with its whole model, whether it is written out or not. Seeds, and
    what may change while a run goes on, say nothing; nor does what has its default or is zero, so
    that a key that comes to the schema leaves the digits as they are.
    """
    flat = {
        key: value
        for key, value in flatten(as_json(with_whole_model(config))).items()
        if key != "seed"
        and value
        and not (key in KEYS and (KEYS[key].resume is True or value == _default(key)))
    }
    text = json.dumps(flat, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _default(key: str) -> Any:
    return as_json({"": KEYS[key].default})[""]


def image_size(config: ConfigDict) -> int | None:
    """Height of evaluation's images, where it is known without decoding one."""
    last = stage_configs(config)[-1]
    size = task_of(last.model).image_size(last.input)
    return size[0] if size and size[0] == size[1] else None


def multiply_adds(config: ConfigDict) -> int | None:
    """Of the forward pass on one image of evaluation; None where its size is unknown."""
    size = image_size(config)
    return _multiply_adds(json.dumps(as_json(config)["model"]), size) if size else None


@functools.cache
def _multiply_adds(model: str, size: int) -> int:
    network = create_network(json.loads(model))
    return of_forward_pass(network, *shapes(network, size))


def _machine(entry: Mapping[str, Any]) -> str | None:
    if not entry:
        return None
    devices = entry["devices"]
    return f"{entry['host']}: {devices['count']} × {', '.join(devices['kinds'])}"


def read_folder(folder: Path, robustness: bool = False) -> dict[Path, Row]:
    """Work folder → row, of all finished runs whose work folders stand in `folder`, by name.

    A method is called as its folders, the seed left out.

    Args:
      robustness: see `record`.
    Raises:
      UsageError: there is none.
    """
    runs = sorted(path.parent for path in folder.glob("*/results.json"))
    if not runs:
        raise UsageError(f"No folder in {folder} holds a run with results: name that of a sweep.")
    names = {run: re.sub(r",?seed=\d+$", "", run.name) or folder.name for run in runs}
    parts = ((1, item) for item in names.items())
    named = shown(parts, len(names), "examining" if robustness else "reading", "run")
    return {run: record(run, name, robustness) for run, name in named}


def write_csv(path: str | os.PathLike, rows: Sequence[Row]) -> None:
    """Replaces a file by the rows, under a line of their names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def read_csv(path: str | os.PathLike) -> list[Row]:
    """What `write_csv` wrote; a number that is missing is None. []: there is no such file."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return [_typed(row) for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


def _typed(row: Mapping[str, str]) -> Row:
    return {
        name: (_NUMBERS[name](text) if text else None) if name in _NUMBERS else text
        for name, text in row.items()
    }


def refuse_other_data(rows: Iterable[Row]) -> None:
    """Refuses rows that were not evaluated on the same examples, seen through the same transforms.

    Raises:
      UsageError: naming two of them.
    """
    first: Row | None = None
    for row in rows:
        first = first or row
        if measures(row) != measures(first):
            raise UsageError(
                f"'{first['method']}' and '{row['method']}' are a classifier and a detector, which "
                "are judged by other measures: make a table of each."
            )
        for name in ("dataset", "eval_split", "count", "eval_transforms"):
            if row[name] != first[name]:
                raise UsageError(
                    f"'{first['method']}' was evaluated with {name} {first[name]!r} and "
                    f"'{row['method']}' with {row[name]!r}: make a table of each."
                )
