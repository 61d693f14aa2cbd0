"""Experiments by name: a config file's table of them, and how one sets its model."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from sop.errors import UsageError, did_you_mean


class Experiment(NamedTuple):
    """One row of a config file's table.

    Attributes:
      summary: what it is, in a line.
      make: () → its config.
    """

    summary: str
    make: Callable[[], ConfigDict]


def choose(experiments: Mapping[str, Experiment], name: str | None) -> ConfigDict:
    """The config of the experiment called `name`, as in `--config=FILE.py:NAME`.

    Raises:
      UsageError: there is no such name, or none was given; it lists all of them.
    """
    if name is not None and name in experiments:
        return experiments[name].make()
    width = max(map(len, experiments))
    rows = "\n".join(f"  {key:{width}}  {row.summary}" for key, row in experiments.items())
    said = (
        "Name an experiment behind the config file, --config=FILE.py:NAME."
        if name is None
        else f"There is no experiment '{name}'.{did_you_mean(name, experiments)}"
    )
    raise UsageError(f"{said} There are:\n{rows}")


def set_model(
    config: ConfigDict,
    backbone: str,
    *,
    attention: str = "none",
    pool: str | None = None,
    representation: str | None = None,
    **options: Any,
) -> ConfigDict:
    """The config with another model: names of its parts, and options of the backbone."""
    config.model.backbone = backbone
    config.model.attention.name = attention
    config.model.pool.name = pool
    config.model.representation.name = representation
    config.model.update(options)
    return config
