"""Markdown tables, printed row by row as they are measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Of `quartiles`.
RATIO = "{0[0]:.2f} ({0[1]:.2f}–{0[2]:.2f})"


def print_header(columns: Mapping[str, str]) -> None:
    """The first two lines of a table.

    Args:
      columns: name → how `str.format` writes a value.
    """
    print("\n| " + " | ".join(columns) + " |")
    print("|" + " --- |" * len(columns), flush=True)


def print_row(columns: Mapping[str, str], row: Mapping[str, Any]) -> None:
    """One line; a value that `row` lacks is a dash."""
    cells = (form.format(row[name]) if name in row else "–" for name, form in columns.items())
    print("| " + " | ".join(cells) + " |", flush=True)


def quartiles(values: Sequence[float]) -> list[float]:
    """Median, lower and upper quartile."""
    return [float(each) for each in np.quantile(values, (0.5, 0.25, 0.75))]
