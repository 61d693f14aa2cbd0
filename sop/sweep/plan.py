"""From a config file and grids to runs, all checked before any is started."""

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import sop
from sop.command import Parser
from sop.config import stage_configs
from sop.config.command_line import add_config, parse
from sop.config.validation import as_json
from sop.errors import UsageError
from sop.sweep.grid import Grid, combinations, name_of
from sop.training import pretrained
from sop.training.task import task_of
from sop.training.workdir import refuse_another_config, with_whole_model

_LONGEST = 200  # characters of a folder's name; file systems take 255


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of `main.py` that a sweep consists of.

    Attributes:
      workdir: its work folder.
      method: name of its settings, which other seeds share.
      settings: keys of the grids → values.
      seed: of the run.
      arguments: of `main.py`, the work folder left out.
      config: what they mean.
    """

    workdir: Path
    method: str
    settings: Mapping[str, str]
    seed: int
    arguments: tuple[str, ...]
    config: ConfigDict

    def command(self) -> list[str]:
        """What starts it, or goes on with it."""
        main = Path(sop.__file__).resolve().parents[1] / "main.py"
        if not main.is_file():
            raise UsageError(f"There is no {main}: install sop from a clone, with pip install -e.")
        place = os.path.relpath(main)
        main_file = str(main) if place.startswith("..") else place
        return [sys.executable, main_file, *self.arguments, f"--workdir={self.workdir}"]

    def __str__(self) -> str:
        return shlex.join(self.command())


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What makes runs.

    Attributes:
      config: FILE.py or FILE.py:EXPERIMENT.
      fixed: '--config.KEY=VALUE' of every run.
      grids: keys and values to go through.
      seeds: the runs of a combination have the seeds 0, …, seeds − 1.
      workdir: the folder of their work folders.
    """

    config: str
    fixed: tuple[str, ...]
    grids: tuple[Grid, ...]
    seeds: int
    workdir: Path

    def methods(self) -> dict[str, dict[str, str]]:
        """Name → settings, of each combination of the grids.

        Raises:
          UsageError: a key has two grids, or two combinations have one name.
        """
        keys = [grid.key for grid in self.grids]
        for key in keys:
            if keys.count(key) > 1:
                raise UsageError(f"There are two grids of '{key}': write one, with all values.")
            if any(each.partition("=")[0] == f"--config.{key}" for each in self.fixed):
                raise UsageError(f"'{key}' has a grid and a --config.{key}: leave one out.")
        if "seed" in keys:
            raise UsageError("There is a grid of 'seed': leave it out and write --seeds=N.")
        named: dict[str, dict[str, str]] = {}
        for settings in combinations(self.grids):
            name = name_of(settings)
            if name in named:
                raise UsageError(
                    f"Two runs have one name, '{name}', of {named[name]} and {settings}: leave "
                    "one out, or put it into a sweep with a --workdir of its own."
                )
            if len(name) > _LONGEST:
                raise UsageError(
                    f"The name '{name[:60]}…' of a run has {len(name)} characters and may have "
                    f"{_LONGEST}: put what is long into experiments of a config file."
                )
            named[name] = settings
        return named

    def runs(self, extra: Mapping[str, Mapping[str, str]] | None = None) -> list[Run]:
        """All runs, the seeds of a combination one after another.

        Args:
          extra: method → settings that it has beside those of the grids.
        Raises:
          UsageError: see `methods`; or the config of a run cannot be meant, or is that of another.
        """
        extra, methods = extra or {}, self.methods()
        runs = [
            self._run(name, settings, extra.get(name, {}), seed)
            for name, settings in methods.items()
            for seed in range(self.seeds)
        ]
        _refuse_equal(runs)
        return runs

    def _run(
        self, method: str, settings: Mapping[str, str], extra: Mapping[str, str], seed: int
    ) -> Run:
        changed = {**settings, **extra, "seed": str(seed)}
        flags = [f"--config.{key}={value}" for key, value in changed.items()]
        arguments = (f"--config={self.config}", *self.fixed, *flags)
        folder = f"{method},seed={seed}" if method else f"seed={seed}"
        config = parse_config(arguments)
        return Run(self.workdir / folder, method, {**settings}, seed, arguments, config)


def parse_config(arguments: Sequence[str]) -> ConfigDict:
    """The config that these arguments mean to `main.py`, checked with its model and transforms.

    Raises:
      UsageError: it cannot be meant.
    """
    parser = Parser()
    add_config(parser)
    config = with_whole_model(parse(parser, arguments)[1])
    for stage in stage_configs(config):
        task = task_of(stage.model)
        task.parse_transforms(stage.input.train_transforms, training=True)
        task.parse_transforms(stage.input.eval_transforms, training=False)
    return config


def _refuse_equal(runs: Sequence[Run]) -> None:
    """Raises UsageError where two runs would do the same under two names, as rates 0.1 and 1e-1."""
    seen: dict[str, Run] = {}
    for run in runs:
        other = seen.setdefault(json.dumps(as_json(run.config), sort_keys=True), run)
        if other is not run:
            raise UsageError(
                f"The runs {other.workdir.name} and {run.workdir.name} are the same, written "
                "differently: leave one out."
            )


def refuse_unfit(runs: Sequence[Run]) -> None:
    """Refuses what `main.py` would refuse of these runs as soon as it opens their data and folders.

    Data that are prepared on first use are prepared here, once.

    Raises:
      UsageError: a split cannot be opened, `init_from` names no weights, or a folder belongs to
        another config.
    """
    for source in dict.fromkeys(run.config.init_from for run in runs):
        if source:
            pretrained.find(source)
    for open_split, *names in dict.fromkeys(each for run in runs for each in _splits(run)):
        open_split(*names)
    for run in runs:
        refuse_another_config(run.workdir, run.config)


def _splits(run: Run) -> Iterator[tuple[Any, ...]]:
    """What opens each of its splits, and the arguments."""
    for stage in stage_configs(run.config):
        for split in (stage.input.train_split, stage.input.eval_split):
            open_split = task_of(stage.model).open_split
            yield open_split, stage.input.dataset, split, stage.input.data_dir
