"""Accuracy, or average precision, against what it costs and against the number of examples."""

import os
import re
from collections.abc import Iterator, Sequence
from itertools import cycle, product
from typing import Any

from matplotlib.figure import Figure

from sop.results.table import Line
from sop.training.durable import write_figure
from sop.training.plots import COLORS


def draw_cost(path: str | os.PathLike, lines: Sequence[Line], title: str) -> bool:
    """The score with its interval against multiply–adds and against parameters, as PNG.

    Returns:
      False, and no picture, where there are no multiply–adds.
    """
    if not all(line.multiply_adds for line in lines):
        return False
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    figure.suptitle(title, parse_math=False)
    left, right = figure.subplots(1, 2, sharey=True)
    for line, style in zip(lines, _styles(), strict=False):
        y, half = _percent(line)
        left.errorbar((line.multiply_adds or 0) / 1e6, y, half, label=line.method, **style)
        right.errorbar(line.parameters / 1e3, y, half, **style)
    left.set(xlabel="multiply–adds of an image (millions)", ylabel=_label(lines))
    right.set(xlabel="parameters (thousands)")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    _save(figure, path)
    return True


def draw_sizes(path: str | os.PathLike, lines: Sequence[Line], title: str) -> bool:
    """The score with its interval against the number of training examples, a line for each method.

    The methods are those of the names without 'train_split=…'.

    Returns:
      False, and no picture, where no method has two sizes.
    """
    families: dict[str, list[Line]] = {}
    for line in lines:
        if line.examples is not None:
            name = re.sub(r"(^|,)train_split=[^,]*", "", line.method).lstrip(",")
            families.setdefault(name or "all", []).append(line)
    if not any(len({line.examples for line in family}) > 1 for family in families.values()):
        return False
    figure = Figure(figsize=(7, 5), layout="constrained")
    figure.suptitle(title, parse_math=False)
    panel = figure.subplots()
    for (name, family), style in zip(families.items(), _styles(), strict=False):
        family = sorted(family, key=lambda line: line.examples or 0)
        means, halves = zip(*map(_percent, family), strict=True)
        panel.errorbar([line.examples or 0 for line in family], means, halves, label=name, **style)
    panel.set(xlabel="training examples", ylabel=_label(lines), xscale="log")
    panel.legend(frameon=False, fontsize=8)
    _save(figure, path)
    return True


def _percent(line: Line) -> tuple[float, float]:
    """What a method is judged by, and half its interval."""
    _, score = line.judged
    return 100 * score.mean, 100 * (score.half or 0)


def _label(lines: Sequence[Line]) -> str:
    return f"{lines[0].judged[0].label} (%)"


def _styles() -> Iterator[dict[str, Any]]:
    """One after another, without an end: colors, then the same with other marks."""
    for mark, color in cycle(product("osD^", COLORS)):
        yield {"marker": mark, "color": color, "capsize": 3}


def _save(figure: Figure, path: str | os.PathLike) -> None:
    for panel in figure.axes:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    write_figure(path, figure)
