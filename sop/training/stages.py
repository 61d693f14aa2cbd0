"""The course of a run: one stage after another, each with its own data and optimizer."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from ml_collections import ConfigDict

from sop.errors import UsageError

# Keys that a stage shares with the whole run: they belong to the model or to the work folder.
_FIXED = (
    "model",
    "dtype",
    "stages",
    "init_from",
    "seed",
    "sync_batch_norm",
    "checkpoint",
    "log_every_steps",
    "profile",
)


class TrainIterator(Iterator[dict[str, Any]], Protocol):
    """Endless batches, whose place is a small JSON-able dictionary."""

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


class TrainData(Protocol):
    """This process's share of the training examples."""

    steps_per_epoch: int
    image_shape: tuple[int, int, int]

    def iterator(self) -> TrainIterator: ...


class EvalData(Protocol):
    """This process's share of the evaluation examples, in padded and masked batches."""

    image_shape: tuple[int, int, int]

    def __iter__(self) -> Iterator[dict[str, Any]]: ...


@dataclasses.dataclass(frozen=True)
class Stage:
    """Steps `first_step … last_step − 1` of a run.

    Attributes:
      index: 0 for the first.
      config: the run's config with this stage's changes.
      train, evaluation: its data.
      first_step, first_epoch: what had gone by when it began.
    """

    index: int
    config: ConfigDict
    train: TrainData
    evaluation: EvalData
    first_step: int
    first_epoch: int

    @property
    def last_step(self) -> int:
        return self.first_step + self.config.num_epochs * self.train.steps_per_epoch

    def epoch_at(self, step: int) -> float:
        """Epochs of the whole run that have gone by after `step` steps."""
        return self.first_epoch + (step - self.first_step) / self.train.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        return (step - self.first_step) % self.train.steps_per_epoch == 0


def stage_configs(config: ConfigDict) -> list[ConfigDict]:
    """The config of each stage: `config` itself, or it with each of `config.stages` laid over it.

    A stage's data are shuffled with a seed of its own, so that its epochs are new ones.

    Raises:
      UsageError: a stage changes an unknown key, or one that belongs to the whole run.
    """
    if not config.stages:
        return [config]
    configs = []
    for index, changes in enumerate(config.stages):
        stage = config.copy_and_resolve_references()
        stage.unlock()
        stage.stages = ()
        stage.lock()
        changes = ConfigDict(changes)
        for key in changes:
            if key in _FIXED or key not in stage:
                raise UsageError(
                    f"config.stages[{index}] sets {key!r}, which "
                    + ("belongs to the whole run" if key in _FIXED else "is no key of a config")
                    + "; remove it from the stage."
                )
        try:
            stage.update(changes)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"config.stages[{index}] does not fit the config ({error}); correct it."
            ) from error
        stage.seed = config.seed + index
        configs.append(stage)
    return configs


def make_stages(
    config: ConfigDict, make_data: Callable[[ConfigDict], tuple[TrainData, EvalData]]
) -> list[Stage]:
    """The stages of a run, in order, their data made by `make_data(stage's config)`."""
    stages: list[Stage] = []
    step = epoch = 0
    for index, stage_config in enumerate(stage_configs(config)):
        train, evaluation = make_data(stage_config)
        stage = Stage(index, stage_config, train, evaluation, step, epoch)
        stages.append(stage)
        step, epoch = stage.last_step, epoch + stage_config.num_epochs
    return stages


def stage_of(stages: Iterable[Stage], step: int) -> Stage:
    """The stage that leads to `step`: at a border, the one that ends there."""
    found = None
    for stage in stages:
        if found is None or stage.first_step < step:
            found = stage
    return found
