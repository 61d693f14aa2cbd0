"""Where a network is wrong: its confusion matrix, and its worst mistakes as a contact sheet."""

import dataclasses
import heapq
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sop.training.durable import write_figure
from sop.training.storage import locate
from sop.using.figures import first_view, short, show_image, title

_MOST_CLASSES = 30  # in a matrix that is still read
_MOST_PAIRS = 12
_COLUMNS = 6


@dataclasses.dataclass
class Confusion:
    """How often images of each class were taken for each other.

    Attributes:
      counts: int [K, K], rows labels, columns predictions.
      class_names: of the K classes.
    """

    counts: np.ndarray
    class_names: Sequence[str]

    @classmethod
    def empty(cls, class_names: Sequence[str]) -> "Confusion":
        return cls(np.zeros((len(class_names),) * 2, np.int64), class_names)

    def add(self, labels: np.ndarray, predicted: np.ndarray) -> None:
        np.add.at(self.counts, (labels, predicted), 1)

    def pairs(self, most: int = _MOST_PAIRS) -> list[tuple[int, int, int]]:
        """(label, prediction, count) of the most frequent mistakes, the most frequent first."""
        wrong = self.counts - np.diag(np.diag(self.counts))
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        found = [(*map(int, np.unravel_index(place, wrong.shape)),) for place in order]
        return [(a, b, int(wrong[a, b])) for a, b in found if wrong[a, b]]

    def describe(self, label: int, prediction: int, count: int) -> str:
        """'9 taken for 4: 3 of 36'."""
        of = int(self.counts[label].sum())
        names = (short(self.class_names[each]) for each in (label, prediction))
        return "{} taken for {}: {} of {}".format(*names, count, of)

    def draw(self, path: str | os.PathLike, heading: str) -> Path:
        """The matrix, of the classes with most mistakes where there are many, and the pairs."""
        pairs = self.pairs()
        shown = self._shown()
        figure = Figure(figsize=(13, 7.5), layout="constrained")
        figure.suptitle(heading, parse_math=False)
        left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
        self._draw_matrix(left, shown)
        texts = [self.describe(*pair) for pair in pairs][::-1]
        right.barh(range(len(texts)), [count for *_, count in pairs][::-1], color="#DD5143")
        right.set_yticks(range(len(texts)), texts, parse_math=False)
        right.xaxis.get_major_locator().set_params(integer=True)
        right.set_xlabel("images")
        title(right, "most confused" if texts else "nothing was confused")
        right.spines[["top", "right"]].set_visible(False)
        write_figure(path, figure)
        return locate(path)

    def _shown(self) -> np.ndarray:
        """Numbers of the classes that the matrix shows."""
        size = len(self.counts)
        if size <= _MOST_CLASSES:
            return np.arange(size)
        wrong = self.counts - np.diag(np.diag(self.counts))
        mistakes = wrong.sum(axis=0) + wrong.sum(axis=1)
        return np.sort(np.argsort(-mistakes, kind="stable")[:_MOST_CLASSES])

    def _draw_matrix(self, axes, shown: np.ndarray) -> None:
        counts = self.counts[np.ix_(shown, shown)]
        shares = counts / np.maximum(self.counts[shown].sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        names = [short(self.class_names[each]) for each in shown]
        axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.set_xlabel("prediction")
        axes.set_ylabel("label")
        size = len(self.counts)
        part = f"the {len(shown)} of {size} classes with most mistakes" if size > len(shown) else ""
        title(axes, part or "images of each class, by what they are taken for")
        if len(shown) <= 20:
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    color = "white" if shares[row, column] > 0.5 else "black"
                    axes.text(column, row, count, ha="center", va="center", color=color, size=8)


@dataclasses.dataclass(frozen=True, order=True)
class Mistake:
    """One wrong prediction.

    Attributes:
      loss: cross-entropy, nats.
      number: of the image.
      name: of the image.
      said, label: 'NAME (SHARE %)' of the predicted and of the right class.
      image: uint8 [H, W, 3], as the network saw it.
    """

    loss: float
    number: int
    name: str = dataclasses.field(compare=False)
    said: str = dataclasses.field(compare=False)
    label: str = dataclasses.field(compare=False)
    image: np.ndarray = dataclasses.field(compare=False)


class Worst:
    """The mistakes of highest loss among all that are added, at most `size`."""

    def __init__(self, size: int = 4 * _COLUMNS):
        self._size = size
        self._kept: list[Mistake] = []

    def add(self, mistake: Mistake) -> None:
        heapq.heappush(self._kept, mistake)
        if len(self._kept) > self._size:
            heapq.heappop(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def draw(self, path: str | os.PathLike, heading: str) -> Path:
        """A contact sheet, the worst first."""
        mistakes = sorted(self._kept, reverse=True)
        columns = min(_COLUMNS, len(mistakes))
        rows = -(-len(mistakes) // columns)
        figure = Figure(figsize=(2.3 * max(columns, 3), 2.9 * rows + 0.5), layout="constrained")
        figure.suptitle(heading, parse_math=False)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, mistake in zip(grid, mistakes, strict=False):
            show_image(axes, first_view(mistake.image))
            text = f"said {mistake.said}\nis {mistake.label}\n{short(mistake.name)}"
            title(axes, text, fontsize=8)
        write_figure(path, figure)
        return locate(path)
