"""`main.py --mode=predict`: what a network says of images, as a table, files and pictures."""

import contextlib
import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sop.errors import UsageError
from sop.progress import shown
from sop.training.durable import refuse_full_disk
from sop.training.storage import locate
from sop.training.workdir import refuse_another_model, refuse_moved_classes
from sop.using.figures import caption, short
from sop.using.images import UNLABELLED, Batch, Pictures, by_name, named
from sop.using.mistakes import Confusion, Mistake, Worst
from sop.using.predictions import Predictions
from sop.using.run import Run, open_run

FOLDER = "predictions"
_SHOWN = 20  # rows of the table on the screen
_COLUMNS = 3  # classes of a row there


def predict(
    config: ConfigDict,
    workdir: str,
    checkpoint: str,
    images: Sequence[str],
    top: int = 5,
    out: str | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Writes `predictions.jsonl`, `predictions.csv` and, where there are labels, two pictures.

    A line of the first is {'image', 'classes', 'probabilities'} of the `top` likeliest classes,
    with 'label' where it is known; or {'image', 'error'}. `confusion.png` holds the confusion
    matrix and the most confused pairs, `mistakes.png` the worst mistakes.

    Args:
      config: checked, of the run's model.
      workdir, checkpoint: see `sop.using.load`.
      images: see `sop.using.images.named`.
      top: classes of each image that are written.
      out: folder for the files; None: `WORKDIR/predictions`.
      say: called with each line for the user.
    Returns:
      The folder.
    Raises:
      UsageError: there is no run, or no image that can be decoded.
    """
    run, pictures = open_both(config, workdir, checkpoint, images, say)
    folder = locate(out) if out else locate(workdir) / FOLDER
    summary = _Summary(run, pictures, top)
    with refuse_full_disk(folder), _Files(folder, min(top, len(run.class_names))) as files:
        sized = ((len(batch.images), batch) for batch in run.batches(pictures))
        for batch in shown(sized, len(pictures), "predicting"):
            good = [row for row in range(len(batch.images)) if row not in batch.bad]
            if good:
                said = Predictions(run.logits(batch.images), run.class_names)
                summary.add(batch, said, good)
            for row in range(len(batch.images)):
                files.write(summary.row(batch, said if good else None, row))
        if len(summary.bad) == len(pictures):
            name, reason = next(iter(summary.bad.items()))
            others = f"nor can the {len(pictures) - 1} others: " if len(pictures) > 1 else ""
            raise UsageError(
                f"The image {name} cannot be decoded, {reason}; {others}name others with --images."
            )
        files.keep()
    say(summary.table())
    for line in (*summary.lines(), *summary.draw(folder)):
        say(line)
    say(f"Predictions: {files.paths[0]} and {files.paths[1].name}")
    return folder


def open_both(
    config: ConfigDict,
    workdir: str,
    checkpoint: str,
    images: Sequence[str],
    say: Callable[[str], None] = print,
) -> tuple[Run, Pictures]:
    """A run and the images that it is asked about, with labels of its own numbers.

    Raises:
      UsageError: as `predict`.
    """
    refuse_another_model(workdir, config)
    run = open_run(workdir, config, checkpoint, say)
    pictures, identity = named(images, run.config, run.class_names)
    if not len(pictures):
        raise UsageError(f"{images[0]} holds no image: name another with --images.")
    if identity is not None:
        refuse_moved_classes(workdir, run.config, identity)
        if run.names_are_numbers and len(pictures.class_names) == len(run.class_names):
            run = dataclasses.replace(run, class_names=tuple(pictures.class_names))
        pictures = by_name(pictures, run.class_names)
    return run, pictures


class _Summary:
    """What is said of all images at the end."""

    def __init__(self, run: Run, pictures: Pictures, top: int):
        self._run, self._pictures, self._top = run, pictures, top
        self.bad: dict[str, str] = {}
        self._rows: list[list[str]] = []
        self._confusion = Confusion.empty(run.class_names)
        self._worst = Worst()
        self._hits = np.zeros(2, int)  # top-1, top-5
        self._labelled = 0

    def add(self, batch: Batch, said: Predictions, good: list[int]) -> None:
        """Counts a batch's mistakes."""
        rows = np.array([row for row in good if batch.labels[row] != UNLABELLED], int)
        if not len(rows):
            return
        labels, best = batch.labels[rows], said.top(5)[0][rows]
        self._confusion.add(labels, best[:, 0])
        found = best == labels[:, None]
        self._hits += found[:, 0].sum(), found.any(axis=1).sum()
        self._labelled += len(rows)
        names, shares = self._run.class_names, said.probabilities
        for row, label, predicted in zip(rows, labels, best[:, 0], strict=True):
            if label != predicted:
                place = batch.first + int(row)
                wrong, right = (
                    f"{short(names[c])} ({shares[row, c]:.1%})" for c in (predicted, label)
                )
                loss = -float(np.log(max(shares[row, label], 1e-45)))
                name = caption(self._pictures.describe(place))
                self._worst.add(Mistake(loss, place, name, wrong, right, batch.images[row]))

    def row(self, batch: Batch, said: Predictions | None, row: int) -> dict[str, Any]:
        """The line of one image."""
        name = self._pictures.describe(batch.first + row)
        found: dict[str, Any] = {"image": name}
        if batch.labels[row] != UNLABELLED:
            found["label"] = self._run.class_names[batch.labels[row]]
        if row in batch.bad or said is None:
            self.bad[name] = batch.bad[row]
            found["error"] = batch.bad[row]
            cells = [f"cannot be decoded, {batch.bad[row]}"]
        else:
            one = Predictions(said.logits[row : row + 1], said.class_names)
            best, shares = (each[0].tolist() for each in one.top(self._top))
            found["classes"] = [said.class_names[each] for each in best]
            found["probabilities"] = [round(share, 6) for share in shares]
            pairs = list(zip(found["classes"], shares, strict=True))[:_COLUMNS]
            cells = [f"{short(each)} {share:.1%}" for each, share in pairs]
        if len(self._rows) < _SHOWN:
            self._rows.append([_tail(name), *([short(found.get("label", ""))]), *cells])
        return found

    def table(self) -> str:
        """The first images, a line each."""
        has_labels = any(row[1] for row in self._rows)
        rows = [row if has_labels else [row[0], *row[2:]] for row in self._rows]
        rows = [["image", *(["label"] if has_labels else []), "says"], *rows]
        widths = [max(len(row[i]) for row in rows if len(row) > i + 1) for i in range(2)]
        lines = [
            "  ".join(
                cell.ljust(widths[i] if i < len(widths) else 0) for i, cell in enumerate(row)
            ).rstrip()
            for row in rows
        ]
        if more := len(self._pictures) - len(self._rows):
            lines.append(f"… and {more:,} more")
        return "\n".join(lines)

    def lines(self) -> Iterator[str]:
        """What cannot be decoded, and how often the network is right."""
        if self.bad:
            listed = ", ".join(list(self.bad)[:_SHOWN]) + (" …" if len(self.bad) > _SHOWN else "")
            yield f"{len(self.bad)} of {len(self._pictures)} images cannot be decoded: {listed}"
        if self._labelled:
            top1, top5 = self._hits / self._labelled
            yield f"Of {self._labelled} images with labels: top-1 {top1:.2%}, top-5 {top5:.2%}"
            yield from (f"  {self._confusion.describe(*p)}" for p in self._confusion.pairs(5))

    def draw(self, folder: Path) -> Iterator[str]:
        """Draws the pictures, if there are labels."""
        about = f"{self._run.workdir}, step {self._run.step}"
        for name in ("confusion.png", "mistakes.png"):
            (folder / name).unlink(missing_ok=True)  # of other images
        if self._labelled:
            heading = (
                f"{about}: {self._labelled} images, top-1 {self._hits[0] / self._labelled:.2%}"
            )
            yield f"Confusion matrix: {self._confusion.draw(folder / 'confusion.png', heading)}"
        if len(self._worst):
            heading = f"{about}: the worst of {self._labelled - self._hits[0]} mistakes"
            yield f"Worst mistakes: {self._worst.draw(folder / 'mistakes.png', heading)}"


def _tail(name: str, longest: int = 44) -> str:
    return name if len(name) <= longest else f"…{name[1 - longest :]}"


class _Files:
    """The two files, under other names until they are kept."""

    def __init__(self, folder: Path, top: int):
        self.paths = [folder / f"predictions.{suffix}" for suffix in ("jsonl", "csv")]
        self._drafts = [path.with_name(f".{path.name}.tmp") for path in self.paths]
        self._top, self._kept = top, False

    def __enter__(self) -> "_Files":
        self.paths[0].parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opening:
            files = [opening.enter_context(draft.open("wb")) for draft in self._drafts]
            self._lines, self._table = (
                opening.enter_context(
                    io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
                )
                for file in files
            )
            self._open = opening.pop_all()
        each = (f"{what}_{place}" for place in range(1, self._top + 1) for what in ("class", "p"))
        self._csv = csv.writer(self._table)
        self._csv.writerow(["image", "label", *each, "error"])
        return self

    def write(self, row: dict[str, Any]) -> None:
        self._lines.write(json.dumps(row) + "\n")
        pairs = zip(row.get("classes", ()), row.get("probabilities", ()), strict=True)
        cells = [cell for pair in pairs for cell in pair] or [""] * (2 * self._top)
        self._csv.writerow([row["image"], row.get("label", ""), *cells, row.get("error", "")])

    def keep(self) -> None:
        self._kept = True

    def __exit__(self, *error: object) -> None:
        self._open.close()
        for draft, path in zip(self._drafts, self.paths, strict=True):
            if self._kept:
                draft.replace(path)
            else:
                draft.unlink(missing_ok=True)
