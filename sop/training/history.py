"""The history of a run, `history.jsonl`: a line for each window of training and each evaluation.

A line is a JSON object {'split': 'train' or 'eval', 'step', 'epoch', 'loss', 'top1' or 'AP', …}
with a checksum of itself. It holds no times: the history of an interrupted run equals that of an
uninterrupted one.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sop.training.durable import DamagedError, seal, unseal, write_atomically

HISTORY = "history.jsonl"


def append_entry(workdir: str | os.PathLike, entry: Mapping[str, Any]) -> None:
    """Adds a line."""
    with open(Path(workdir) / HISTORY, "a", encoding="utf-8") as file:
        file.write(_line(entry))


def write_history(workdir: str | os.PathLike, entries: Iterable[Mapping[str, Any]]) -> None:
    """Replaces the whole."""
    write_atomically(Path(workdir) / HISTORY, "".join(map(_line, entries)))


def read_history(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The entries that are as they were written; a line that a kill cut short is none."""
    try:
        lines = (Path(workdir) / HISTORY).read_bytes().split(b"\n")
    except OSError:  # also a folder in its place
        return []
    entries, sealed = [], []
    for line in lines:
        try:
            entry, has_checksum = unseal(line)
            _ = entry["split"], int(entry["step"])
        except (DamagedError, KeyError, TypeError, ValueError):
            continue
        entries.append(entry)
        sealed.append(has_checksum)
    # Earlier versions wrote no checksums; where some lines have one, the others have lost theirs.
    return [e for e, has in zip(entries, sealed, strict=True) if has or not any(sealed)]


def evaluation_at(workdir: str | os.PathLike, step: int) -> dict[str, Any] | None:
    """What the evaluation after `step` found: the scores, and 'count' of examples."""
    for entry in read_history(workdir):
        if entry["split"] == "eval" and entry["step"] == step:
            return {k: v for k, v in entry.items() if k not in ("split", "step", "epoch")}
    return None


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(seal(entry)) + "\n"
