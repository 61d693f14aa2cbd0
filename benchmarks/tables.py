"""Markdown tables, row by row as they are measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Of `quartiles`.
RATIO = "{0[0]:.2f} ({0[1]:.2f}–{0[2]:.2f})"


def header(columns: Mapping[str, str]) -> str:
    """The first two lines of a table.

    Args:
      columns: name → how `str.format` writes a value.
    """
    return "| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns)


def line(columns: Mapping[str, str], row: Mapping[str, Any]) -> str:
    """One line of it; a value that `row` lacks is a dash."""
    cells = (form.format(row[name]) if name in row else "–" for name, form in columns.items())
    return "| " + " | ".join(cells) + " |"


def print_header(columns: Mapping[str, str]) -> None:
    print("\n" + header(columns), flush=True)


def print_row(columns: Mapping[str, str], row: Mapping[str, Any]) -> None:
    print(line(columns, row), flush=True)


def quartiles(values: Sequence[float]) -> list[float]:
    """Median, lower and upper quartile."""
    return [float(each) for each in np.quantile(values, (0.5, 0.25, 0.75))]
