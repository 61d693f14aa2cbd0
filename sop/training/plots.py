"""The curves of a run as one picture."""

import io
import os
from collections.abc import Sequence
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from sop.training.durable import write_atomically

_COLORS = {"train": "#4C72B0", "eval": "#DD5143"}
_LABELS = {"train": "training", "eval": "evaluation"}
_PANELS = {"loss": "loss", "top1": "top-1 error (%)", "top5": "top-5 error (%)"}


def draw_curves(path: str | os.PathLike, history: Sequence[dict[str, Any]], title: str) -> None:
    """Draws loss, top-1 error, top-5 error and learning rate against epochs, as PNG.

    Args:
      path: replaced atomically.
      history: entries as in `history.jsonl`, see `Reporter`.
      title: above the picture, as it is: a `$` begins no formula.
    """
    figure = Figure(figsize=(11, 7.5))
    figure.suptitle(title.encode(errors="replace").decode(), parse_math=False)
    axes = figure.subplots(2, 2).flat
    figure.subplots_adjust(0.08, 0.08, 0.98, 0.92, wspace=0.22, hspace=0.25)
    for panel, (key, label) in zip(axes, _PANELS.items(), strict=False):
        for split in ("train", "eval"):
            _plot(panel, history, split, key)
        panel.set_ylabel(label)
        panel.legend(frameon=False)
    _plot(axes[3], history, "train", "learning_rate")
    axes[3].set_ylabel("learning rate")
    rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    if rates and min(rates) > 0 and max(rates) >= 5 * median(rates):
        axes[3].set_yscale("log")
    for panel in axes:
        panel.set_xlabel("epoch")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    write_atomically(path, picture.getvalue())


def _plot(panel, history: Sequence[dict[str, Any]], split: str, key: str) -> None:
    points = [
        (entry["epoch"], _as_drawn(key, entry[key]))
        for entry in history
        if entry["split"] == split and key in entry
    ]
    if not points:
        return
    epochs, values = zip(*points, strict=True)
    style = {"marker": "o", "markersize": 4} if len(points) <= 40 else {}
    panel.plot(epochs, values, color=_COLORS[split], label=_LABELS[split], linewidth=1.5, **style)
    if key in ("top1", "top5"):
        panel.set_ylim(bottom=0)


def _as_drawn(key: str, value: float) -> float:
    return 100 * (1 - value) if key in ("top1", "top5") else value
