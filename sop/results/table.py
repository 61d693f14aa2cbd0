"""Rows of runs → a line for each method, as text, Markdown, CSV and JSON."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sop.errors import UsageError, did_you_mean
from sop.results.record import Row, refuse_other_data, write_csv
from sop.results.robustness import Robustness
from sop.results.speed import Speed
from sop.results.statistics import Estimate, by_seed, difference, estimate
from sop.training.durable import write_json
from sop.training.memory import readable
from sop.training.scores import Measure, measures


@dataclasses.dataclass(frozen=True)
class Line:
    """What is known of a method.

    Attributes:
      method: its name.
      scores: of each measure that methods are compared by, in [0, 1] over the seeds; None: its runs
        have no such score. The first is the one that says which method is the best.
      differences: of the same to the baseline's, paired by seed; None: of the baseline, or without
        one.
      learning_rate: of its runs.
      lr_multipliers: of its runs, as text; "": none.
      examples: that it was trained on.
      parameters: number of them.
      multiply_adds: of the forward pass on one image.
      speed: of its training step, if it was timed.
      robustness: name → its mean over the seeds, see `sop.results.robustness`; None: not examined;
        of detectors there are none.
    """

    method: str
    scores: Mapping[Measure, Estimate | None]
    differences: Mapping[Measure, Estimate | None]
    learning_rate: float
    examples: int | None
    parameters: int
    multiply_adds: int | None
    lr_multipliers: str = ""
    speed: Speed | None = None
    robustness: Mapping[str, Estimate | None] = dataclasses.field(default_factory=dict)

    @property
    def judged(self) -> tuple[Measure, Estimate]:
        """The measure that says which method is the best, and its value."""
        measure, value = next(iter(self.scores.items()))
        assert value is not None  # a run without it has no row
        return measure, value


def summarize(
    rows: Sequence[Row], baseline: str | None = None, speeds: Mapping[str, Speed] | None = None
) -> list[Line]:
    """A line for each method, in the order of the rows.

    Args:
      rows: of runs, see `sop.results.record`.
      baseline: the method that the others are compared with.
      speeds: of methods.
    Raises:
      UsageError: the rows are of different data; a method has two runs with one seed or runs of
        different configs; or there is no such baseline.
    """
    refuse_other_data(rows)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["method"], []).append(row)
    for method, runs in groups.items():
        if len({run["config"] for run in runs}) > 1:
            raise UsageError(
                f"The runs of '{method}' have different configs: put them into folders of "
                "different names."
            )
    if baseline is not None and baseline not in groups:
        raise UsageError(
            f"There is no method '{baseline}'.{did_you_mean(baseline, groups)} There are "
            f"{', '.join(groups)}."
        )
    compared = [measure for measure in measures(rows[0]) if measure.compared]
    scores = {
        method: {measure: _by_seed(runs, measure, method) for measure in compared}
        for method, runs in groups.items()
    }
    base = scores.get(baseline) if baseline is not None else None
    return [
        Line(
            method=method,
            scores={
                measure: estimate(list(values.values())) if values else None
                for measure, values in scores[method].items()
            },
            differences={
                measure: difference(values, base[measure]) if base and method != baseline else None
                for measure, values in scores[method].items()
            },
            learning_rate=runs[0]["learning_rate"],
            lr_multipliers=runs[0].get("lr_multipliers") or "",
            examples=runs[0]["examples"],
            parameters=runs[0]["parameters"],
            multiply_adds=runs[0]["multiply_adds"],
            speed=(speeds or {}).get(method),
            robustness={
                name: estimate([run[name] for run in runs])
                if all(run.get(name) is not None for run in runs)
                else None
                for name in Robustness._fields
                if name in runs[0]
            },
        )
        for method, runs in groups.items()
    ]


def _by_seed(runs: Sequence[Row], measure: Measure, method: str) -> dict[int, float]:
    """Seed → score; {}: of a detector that finds no masks."""
    pairs = [(run["seed"], run[measure.name]) for run in runs]
    return by_seed([pair for pair in pairs if pair[1] is not None], method)


class _Column(NamedTuple):
    """A column: its head, a line's cell, and whether it may be left out where all are empty."""

    head: str
    cell: Callable[[Line], str]
    optional: bool = False


def percent(value: Estimate | None, signed: bool = False) -> str:
    """'88.1 ± 0.6', of accuracies in [0, 1] or their differences."""
    if value is None:
        return ""
    mean = f"{100 * value.mean:{'+' if signed else ''}.2f}"
    return mean if value.half is None else f"{mean} ± {100 * value.half:.2f}"


def _of_measure(measure: Measure) -> tuple[_Column, _Column]:
    return (
        _Column(f"{measure.label} (%)", lambda line: percent(line.scores[measure]), optional=True),
        _Column(
            "difference",
            lambda line: percent(line.differences[measure], signed=True),
            optional=True,
        ),
    )


_FIRST = (
    _Column("method", lambda line: line.method),
    _Column("seeds", lambda line: str(line.judged[1].size)),
)
_OTHERS = (
    _Column("noise (%)", lambda line: percent(line.robustness.get("noise")), optional=True),
    _Column("blur (%)", lambda line: percent(line.robustness.get("blur")), optional=True),
    _Column("contrast (%)", lambda line: percent(line.robustness.get("contrast")), optional=True),
    _Column("ECE (%)", lambda line: percent(line.robustness.get("ece")), optional=True),
    _Column("learning rate", lambda line: f"{line.learning_rate:g}"),
    _Column("of parts", lambda line: line.lr_multipliers, optional=True),
    _Column("examples", lambda line: f"{line.examples:,}" if line.examples else "", optional=True),
    _Column("parameters", lambda line: f"{line.parameters:,}"),
    _Column("multiply–adds", lambda line: _millions(line.multiply_adds), optional=True),
    _Column(
        "images/s",
        lambda line: f"{line.speed.images_per_second:,.0f}" if line.speed else "",
        optional=True,
    ),
    _Column(
        "memory",
        lambda line: readable(line.speed.memory) if line.speed and line.speed.memory else "",
        optional=True,
    ),
)


def _millions(count: int | None) -> str:
    return f"{count / 1e6:,.2f} M" if count else ""


def cells(lines: Sequence[Line]) -> list[list[str]]:
    """The heads of the columns and the cells of each line; empty columns are left out.

    A difference is one of the column before.
    """
    scores = (column for measure in lines[0].scores for column in _of_measure(measure))
    columns = [
        column
        for column in (*_FIRST, *scores, *_OTHERS)
        if not column.optional or any(column.cell(line) for line in lines)
    ]
    heads = [column.head for column in columns]
    return [heads, *([column.cell(line) for column in columns] for line in lines)]


def as_text(lines: Sequence[Line]) -> str:
    """Aligned, for a terminal."""
    rows = cells(lines)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([f"{row[0]:{widths[0]}}", *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def as_markdown(lines: Sequence[Line]) -> str:
    """A table of Markdown."""
    head, *rows = cells(lines)
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def plain(line: Line) -> dict[str, Any]:
    """A line as numbers: 'top1', 'top1_half', 'difference', 'difference_half', …

    'difference' is that of the first measure; of another, 'AP50_difference'.
    """
    judged, seeds = line.judged[0], line.judged[1].size
    found: dict[str, Any] = {"method": line.method, "seeds": seeds}
    for measure, score in line.scores.items():
        found |= _plain(measure.name, score)
        prefix = "" if measure == judged else f"{measure.name}_"
        found |= _plain(f"{prefix}difference", line.differences[measure])
    for name in ("learning_rate", "examples", "parameters", "multiply_adds"):
        found[name] = getattr(line, name)
    for name, value in line.robustness.items():
        found |= _plain(name, value)
    for name in Speed._fields:
        found[name] = getattr(line.speed, name, None)
    return found


def _plain(name: str, value: Estimate | None) -> dict[str, float | None]:
    return {name: value and value.mean, f"{name}_half": value and value.half}


def write_tables(folder: str | os.PathLike, lines: Sequence[Line]) -> None:
    """Writes `table.csv` and `table.json`."""
    numbers = [plain(line) for line in lines]
    write_csv(os.path.join(folder, "table.csv"), numbers)
    write_json(os.path.join(folder, "table.json"), numbers)
