"""The order in which a classifier's weights meet the upper triangle of a covariance.

By rows: 00 01 02 … 11 12 …; by columns: 00 01 11 02 12 22 …
"""

import math
import re
from pathlib import Path
from typing import Literal

import numpy as np

Order = Literal["rows", "columns"]

# Published files of fast MPN-COV's first generation have these in their names.
_BY_COLUMNS = re.compile(r"15991845|ade9737a")
# Classifiers without any order, those of new networks, stay below: see tests/triangle_orders.py.
_EVIDENT = 5.0
_FEWEST = 136  # entries of d = 16; with fewer, chance reaches further


def order_by_name(path: str | Path) -> Order | None:
    """The order of a published file whose name tells it."""
    return "columns" if _BY_COLUMNS.search(Path(path).name) else None


def columns_by_rows(length: int) -> np.ndarray:
    """Where in the upper triangle read by columns each entry of the one read by rows stands."""
    places = _places(length, "columns")
    return places[np.triu_indices(len(places))]


def likely_order(kernel: np.ndarray) -> Order | None:
    """The order that a trained classifier's weights show; None where they show none.

    Trained weights of σᵢⱼ are large where channels i and j are much used, and differ on the
    diagonal, whose entries are never negative. So the length of the weights of σᵢⱼ is modelled as
    log ‖wᵢⱼ‖ = m + aᵢ + aⱼ + b [i = j], by least squares, with the places of either order. What is
    left over is r_rows and r_columns, and

        z = n/2 · log(r_columns / r_rows) / √d,        n = d(d+1)/2

    is the difference of the log-likelihoods in units of how far it strays, about, where the
    weights have no order. Beyond ±5 it is taken for one.

    Args:
      kernel: [d(d+1)/2, K].
    """
    z = evidence(kernel)
    return None if abs(z) < _EVIDENT else "rows" if z > 0 else "columns"


def evidence(kernel: np.ndarray) -> float:
    """z of `likely_order`: positive for rows, negative for columns; 0 where d < 16."""
    length = len(kernel)
    if length < _FEWEST:
        return 0.0
    norms = np.linalg.norm(kernel, axis=1)
    logs = np.log(np.maximum(norms, np.finfo(np.float32).tiny))
    rows, columns = (_left_over(logs[_places(length, order)]) for order in ("rows", "columns"))
    ratio = (columns + 1e-9 * length) / (rows + 1e-9 * length)
    return length / 2 * math.log(ratio) / math.sqrt(math.isqrt(2 * length))


def _places(length: int, order: Order) -> np.ndarray:
    """[d, d]: where the entry ij, or ji, stands in the triangle."""
    size = math.isqrt(2 * length)
    places = np.zeros((size, size), int)
    triangle = np.triu_indices if order == "rows" else np.tril_indices
    places[triangle(size)] = np.arange(length)
    return np.maximum(places, places.T)


def _left_over(y: np.ndarray) -> float:
    """Σ (yᵢⱼ − m − aᵢ − aⱼ − b [i = j])² over the upper triangle, by least squares."""
    size = len(y)
    off = ~np.eye(size, dtype=bool)
    y = y - y[off].mean()
    a = np.where(off, y, 0).sum(1) / (size - 2)
    y = y - a[:, None] - a
    return np.square(y[np.triu_indices(size, 1)]).sum() + size * np.diag(y).var()
