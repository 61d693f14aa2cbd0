"""Values of some keys for each method, chosen on a validation split: the same choice for all.

The runs of the tuning stand in `WORKDIR/tuning`, the grids of the tuned keys beside the others,
with seed 0. They train on one part of the training split and are evaluated, at their end, on the
other; the test split is not opened. The values that are best there, by `sop.training.scores.rank`,
are what the runs of all seeds then train with, on the whole training split.
"""

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sop.errors import UsageError
from sop.sweep.grid import Grid, name_of, split_values
from sop.sweep.plan import Run, Sweep, parse_config
from sop.training.scores import rank

_SHARE = 80  # percent of the training split that the tuning trains on


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What is tuned, and on what.

    Attributes:
      grids: keys and their values; every combination is tried.
      train, validation: splits.
      changes: further keys → values of its runs.

    The splits and the changes go before what a sweep says of these keys. So methods that differ in
    nothing else, as in the number of training examples, are tuned once, together.
    """

    grids: tuple[Grid, ...]
    train: str
    validation: str
    changes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def _changed(self) -> dict[str, str]:
        splits = {"input.train_split": self.train, "input.eval_split": self.validation}
        return {**self.changes, **splits}

    def sweep(self, sweep: Sweep) -> Sweep:
        """The runs that try each combination once for each method of another sweep."""
        changed = self._changed()
        kept = (grid for grid in sweep.grids if grid.key not in changed)
        return dataclasses.replace(
            sweep,
            fixed=(*sweep.fixed, *(f"--config.{key}={value}" for key, value in changed.items())),
            grids=(*kept, *self.grids),
            seeds=1,
            workdir=sweep.workdir / "tuning",
        )

    def method(self, settings: Mapping[str, str]) -> str:
        """What a method of a sweep, or a run of its tuning, is called there."""
        left_out = self._changed().keys() | {grid.key for grid in self.grids}
        return name_of({key: value for key, value in settings.items() if key not in left_out})


def make_tuning(sweep: Sweep, grids: Sequence[Grid], splits: str | None) -> Tuning:
    """A tuning on two splits, 'train,validation', by default 80 % and 20 % of the training split.

    Raises:
      UsageError: a split is missing or cannot be cut; or one has the name of what the sweep's runs
        are evaluated on, though it be another part; or the config cannot be meant.
    """
    config = parse_config((f"--config={sweep.config}", *sweep.fixed))
    whole, test = config.input.train_split, config.input.eval_split
    if splits is None and not re.fullmatch(r"\w+", whole):
        raise UsageError(
            f"config.input.train_split is {whole!r}, which is not cut by itself: name two parts of "
            "it, --validation='train[:3000],train[3000:]'."
        )
    splits = splits or f"{whole}[:{_SHARE}%],{whole}[{_SHARE}%:]"
    parts = split_values(splits)
    if len(parts) != 2 or not all(parts) or parts[0] == parts[1]:
        raise UsageError(
            f"--validation={splits} does not name two splits: write 'train[:80%],train[80%:]'."
        )
    if shared := _names(splits) & _names(test):
        raise UsageError(
            f"The tuning would choose on '{shared.pop()}', but config.input.eval_split is "
            f"{test!r}: set that to the test split."
        )
    return Tuning(tuple(grids), *parts)


def _names(splits: str) -> set[str]:
    """Names of splits in a text, their parts left out."""
    return {name.strip() for name in re.split("[+,]", re.sub(r"\[.*?\]", "", splits))}


def phases(
    sweep: Sweep, tuning: Tuning | None, result: Callable[[Run], Mapping[str, Any] | None]
) -> Iterator[list[Run]]:
    """The runs to begin with, then those that follow when they have ended.

    All are checked before the first are given. What was chosen is said on stderr.

    Args:
      result: see `choose`.
    """
    if tuning is None:
        yield sweep.runs()
        return
    methods = sweep.methods()
    trials = tuning.sweep(sweep).runs()
    first = {grid.key: grid.values[0] for grid in tuning.grids}
    sweep.runs({method: first for method in methods})
    yield trials
    chosen = choose(trials, tuning, result)
    ends = at_an_end(chosen, tuning.grids)
    tuned = {method: tuning.method(settings) for method, settings in methods.items()}
    for method in dict.fromkeys(tuned.values()):
        values = chosen.get(method, {})
        said = ", ".join(f"{key}={value}" for key, value in values.items())
        said = said or f"no {' and '.join(first)} worked"
        more = ", at an end of those tried: one beyond may be better" if method in ends else ""
        print(f"{method or 'all'}: {said}{more}", file=sys.stderr)
    best = {method: chosen[name] for method, name in tuned.items() if name in chosen}
    if best:
        yield [run for run in sweep.runs(best) if run.method in best]


def choose(
    runs: Sequence[Run],
    tuning: Tuning,
    result: Callable[[Run], Mapping[str, Any] | None],
) -> dict[str, dict[str, str]]:
    """Method → the tuned keys with their best values; one none of whose runs finished is left out.

    What is better, see `sop.training.scores.rank`; of equals the first is chosen.

    Args:
      runs: of `Tuning.sweep`.
      tuning: their own.
      result: run → its scores at its end; None: it failed.
    """
    best: dict[str, tuple[tuple[float, float], dict[str, str]]] = {}
    for run in runs:
        found = result(run)
        if found is None:
            continue
        score = rank(found)
        method = tuning.method(run.settings)
        if method not in best or score > best[method][0]:
            best[method] = score, {grid.key: run.settings[grid.key] for grid in tuning.grids}
    return {method: settings for method, (_, settings) in best.items()}


def at_an_end(chosen: Mapping[str, Mapping[str, str]], grids: Sequence[Grid]) -> list[str]:
    """The methods for which the least or the largest of at least three numbers was best."""
    ends = {(grid.key, value) for grid in grids for value in _ends(grid)}
    return [name for name, settings in chosen.items() if ends & set(settings.items())]


def _ends(grid: Grid) -> set[str]:
    """The least and the largest of at least three numbers; of others none."""
    try:
        several = len({float(each) for each in grid.values}) > 2
    except ValueError:
        return set()
    return {end(grid.values, key=float) for end in (min, max)} if several else set()
