"""What a run is, for people to read: its config and its parameters as aligned text."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from sop.config import flatten


def config_table(config: ConfigDict) -> str:
    """One line 'key  value' for each dotted key."""
    rows = sorted(flatten(config).items())
    return _table([(key, repr(value)) for key, value in rows], "<<")


def parameter_table(variables: Mapping[str, Any], depth: int = 2) -> str:
    """Numbers of parameters and their bytes, by module down to `depth` levels, and totals.

    Args:
      variables: {'params': …, other collections: …} of arrays or `jax.ShapeDtypeStruct`s.
    """
    rows = [("module", "parameters", "size")]
    groups: dict[str, list[Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        names = [str(getattr(key, "key", key)) for key in path]
        groups.setdefault("/".join(names[:-1][:depth]) or names[0], []).append(leaf)
    rows += [(name, *_sizes(leaves)) for name, leaves in groups.items()]
    rows += [
        ("all parameters" if name == "params" else f"all {name}", *_sizes(jax.tree.leaves(tree)))
        for name, tree in sorted(variables.items(), key=lambda item: item[0] != "params")
    ]
    return _table(rows, "<>>")


def _sizes(leaves: Sequence[Any]) -> tuple[str, str]:
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    unit = 0
    while size >= 1024 and unit < 3:
        size, unit = size / 1024, unit + 1
    amount = f"{size:.1f}" if unit else str(size)
    return f"{sum(leaf.size for leaf in leaves):,}", f"{amount} {('B', 'KiB', 'MiB', 'GiB')[unit]}"


def _table(rows: Sequence[Sequence[str]], alignment: str) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            f"{cell:{side}{width}}"
            for cell, side, width in zip(row, alignment, widths, strict=True)
        )
        for row in rows
    )
    return "\n".join("  " + line.rstrip() for line in lines)
