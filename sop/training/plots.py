"""The curves of runs as one picture."""

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from statistics import fmean, median, pstdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sop.training.durable import write_figure

History = Sequence[Mapping[str, Any]]  # entries as in `history.jsonl`, see `sop.training.history`

COLORS = ("#4C72B0", "#DD5143", "#55A868", "#8172B3", "#CCB974", "#64B5CD", "#8C8C8C", "#DA8BC3")
_PANELS = {
    "loss": "loss",
    "top1": "top-1 error (%)",
    "top5": "top-5 error (%)",
    "AP": "AP (%)",
    "AP50": "AP50 (%)",
}
_SHARES: dict[str, Callable[[float], float]] = {
    **dict.fromkeys(("top1", "top5"), lambda share: 100 * (1 - share)),
    **dict.fromkeys(("AP", "AP50"), lambda share: 100 * share),
}
_NAMES = {"train": "training", "eval": "evaluation"}


def draw_curves(path: str | os.PathLike, history: History, title: str) -> None:
    """Draws loss, errors or average precision, and learning rate of one run against epochs, as PNG.

    Args:
      path: replaced atomically.
      history: of the run.
      title: above the picture, as it is: a `$` begins no formula.
    """
    figure, panels = _panels({"": [history]}, title)
    for key, panel in panels.items():
        for split, color in zip(_NAMES, COLORS, strict=False):
            _plot(panel, [history], split, key, color, _NAMES[split])
    _save(figure, panels, path)


def draw_groups(
    path: str | os.PathLike, groups: Mapping[str, Sequence[History]], title: str
) -> None:
    """Draws the same of several runs: a color for each group, whose runs differ in seed alone.

    A line is the mean over the runs of a group, its band one standard deviation of them to either
    side. Evaluation is drawn through, training dotted.

    Args:
      path: replaced atomically.
      groups: name in the legend → histories.
      title: as it is.
    """
    figure, panels = _panels(groups, title)
    for (name, histories), color in zip(groups.items(), cycle(COLORS), strict=False):
        for key, panel in panels.items():
            for split in _NAMES:
                label = name if split == "eval" else None
                _plot(panel, histories, split, key, color, label, dotted=split == "train")
    _save(figure, panels, path)


def _panels(groups: Mapping[str, Sequence[History]], title: str) -> tuple[Figure, dict[str, Axes]]:
    entries = [entry for histories in groups.values() for run in histories for entry in run]
    # The best five of five classes are always right.
    says_something = any(entry.get("top5", 1.0) < 1 for entry in entries)
    known = {key for entry in entries for key in entry} or {"loss", "top1"}
    names = {k: n for k, n in _PANELS.items() if k in known and (k != "top5" or says_something)}
    figure = Figure(figsize=(11, 7.5))
    figure.suptitle(title.encode(errors="replace").decode(), parse_math=False)
    figure.subplots_adjust(0.08, 0.08, 0.98, 0.92, wspace=0.22, hspace=0.25)
    axes = list(figure.subplots(2, 2).flat)
    for panel in axes[len(names) + 1 :]:
        panel.remove()
    panels = dict(zip([*names, "learning_rate"], axes, strict=False))
    for key, panel in panels.items():
        panel.set_ylabel(names.get(key, "learning rate"))
        panel.set_xlabel("epoch")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    rates = [entry["learning_rate"] for entry in entries if "learning_rate" in entry]
    if rates and min(rates) > 0 and max(rates) >= 5 * median(rates):
        panels["learning_rate"].set_yscale("log")
    return figure, panels


def _save(figure: Figure, panels: Mapping[str, Axes], path: str | os.PathLike) -> None:
    for key, panel in panels.items():
        if key in _SHARES:
            panel.set_ylim(bottom=0)
        if key != "learning_rate" and panel.get_legend_handles_labels()[1]:
            panel.legend(frameon=False)
    write_figure(path, figure)


def _plot(
    panel: Axes,
    histories: Sequence[History],
    split: str,
    key: str,
    color: str,
    label: str | None,
    dotted: bool = False,
) -> None:
    points = _points(histories, split, key)
    if not points:
        return
    epochs, values = zip(*points, strict=True)
    means = [fmean(each) for each in values]
    if key == "learning_rate":
        # An entry holds the rate of the last step of a window, which begins where the last ended.
        panel.plot((0, *epochs), (means[0], *means), color=color, drawstyle="steps-pre")
        return
    style: dict[str, Any] = {"linestyle": ":"} if dotted else {}
    if len(points) <= 40 and not dotted:
        style |= {"marker": "o", "markersize": 4}
    panel.plot(epochs, means, color=color, label=label, linewidth=1.5, **style)
    if len(histories) > 1 and not dotted:
        spread = [pstdev(each) for each in values]
        below, above = zip(
            *((m - s, m + s) for m, s in zip(means, spread, strict=True)), strict=True
        )
        panel.fill_between(epochs, below, above, color=color, alpha=0.2, linewidth=0)


def _points(histories: Sequence[History], split: str, key: str) -> list[tuple[float, list[float]]]:
    """(epoch, the value of each run) wherever all runs have one."""
    runs = [
        {
            entry["epoch"]: _SHARES[key](entry[key]) if key in _SHARES else entry[key]
            for entry in history
            if entry["split"] == split and key in entry
        }
        for history in histories
    ]
    epochs = set.intersection(*map(set, runs))
    return [(epoch, [run[epoch] for run in runs]) for epoch in sorted(epochs)]
