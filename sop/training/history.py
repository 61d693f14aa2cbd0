"""The history of a run, `history.jsonl`: a line for each window of training and each evaluation.

A line is a JSON object {'split': 'train' or 'eval', 'step', 'epoch', 'loss', 'top1' or 'AP', …}
with a checksum of itself. It holds no times: the history of an interrupted run equals that of an
uninterrupted one.
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from sop.training.durable import DamagedError, seal, unseal
from sop.training.storage import Lines, locate

HISTORY = "history.jsonl"


class HistoryFile:
    """The file, to be written; see `sop.training.storage.Lines` for when each entry is."""

    def __init__(self, workdir: str | os.PathLike):
        self._lines = Lines(locate(workdir) / HISTORY)

    def begin(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Replaces the whole."""
        self._lines.begin(map(_line, entries))

    def append(self, entry: Mapping[str, Any]) -> bool:
        """Adds a line; whether it has been written."""
        return self._lines.append(_line(entry))

    def flush(self) -> bool:
        """Writes the lines that have not been written; whether there were any."""
        return self._lines.flush()


def read_history(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The entries that are as they were written; a line that a kill cut short is none."""
    try:
        lines = (locate(workdir) / HISTORY).read_bytes().split(b"\n")
    except OSError:  # also a folder in its place
        return []
    entries, sealed = [], []
    for each in lines:
        try:
            entry, has_checksum = unseal(each)
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
