"""The course of a run: one stage after another, each with its own data and optimizer.

A *step* is the number of optimizer steps taken since the run began. Stage s covers the steps
`first_step + 1 … last_step`; the state at `first_step` is what it begins with. Everything else
about where a run stands follows from the step.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import optax
from ml_collections import ConfigDict

from sop.errors import UsageError
from sop.training.optimizer import make_schedule
from sop.training.step import Rows

_MOST_STEPS = 2**31 - 1  # they are counted in int32


class TrainData(Protocol):
    """This process's share of the training examples."""

    steps_per_epoch: int
    image_shape: tuple[int, int, int]
    identity: dict[str, Any]  # JSON-able: 'split', 'examples', 'classes', 'files' (a hash)
    row_shape: tuple[int, ...]  # of an example's image in a batch
    buckets: Sequence[Rows]  # of each size that images have

    def batches(self, start: int, first_epoch: int) -> Iterator[dict[str, Any]]:
        """Batch number `start` and those after it; batch 0 begins epoch `first_epoch`."""


class EvalData(Protocol):
    """This process's share of the evaluation examples, in padded and masked batches."""

    num_examples: int
    image_shape: tuple[int, int, int]
    identity: dict[str, Any]  # as that of TrainData
    row_shape: tuple[int, ...]  # with the views of an image in front
    buckets: Sequence[Rows]  # of each size that images have

    def __iter__(self) -> Iterator[dict[str, Any]]: ...


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
      config: the run's config with this stage's changes.
      train, evaluation: its data.
      schedule: steps taken within the stage → the learning rate of the next one.
      first_step, first_epoch: what had gone by when it began.
    """

    config: ConfigDict
    train: TrainData
    evaluation: EvalData
    schedule: optax.Schedule
    first_step: int
    first_epoch: int

    @property
    def last_step(self) -> int:
        return self.first_step + self.config.num_epochs * self.train.steps_per_epoch

    def epoch_at(self, step: int) -> float:
        """Epochs of the whole run that have gone by at `step`."""
        return self.first_epoch + (step - self.first_step) / self.train.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        return (step - self.first_step) % self.train.steps_per_epoch == 0

    def batches(self, step: int) -> Iterator[dict[str, Any]]:
        """The batches of the steps after `step`."""
        return self.train.batches(step - self.first_step, self.first_epoch)

    def learning_rate(self, step: int) -> float:
        """That of the step that leads to `step`."""
        return float(self.schedule(step - self.first_step - 1))


def make_stages(
    configs: Sequence[ConfigDict], data: Iterable[tuple[TrainData, EvalData]]
) -> list[Stage]:
    """The stages of a run, in order.

    Args:
      configs: see `sop.config.stage_configs`.
      data: of each.
    Raises:
      UsageError: a stage's schedule does not fit its length, or there are too many steps.
    """
    stages: list[Stage] = []
    step = epoch = 0
    for config, (train, evaluation) in zip(configs, data, strict=True):
        schedule = make_schedule(
            config.schedule,
            config.optimizer.learning_rate,
            config.num_epochs,
            train.steps_per_epoch,
        )
        stages.append(Stage(config, train, evaluation, schedule, step, epoch))
        step, epoch = stages[-1].last_step, epoch + config.num_epochs
        if step > _MOST_STEPS:
            raise UsageError(
                f"config.num_epochs = {config.num_epochs} of {train.steps_per_epoch} steps each "
                f"make the run one of {step} steps, more than {_MOST_STEPS}; set fewer."
            )
    return stages


def identities(data: Iterable[tuple[TrainData, EvalData]]) -> list[dict[str, Any]]:
    """What tells the data of each stage from others, JSON-able."""
    return [{"train": t.identity, "evaluation": e.identity} for t, e in data]


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """The stage that covers `step`; the first for step 0, the last beyond the end."""
    reached = (stage for stage in stages if step <= stage.last_step)
    return next(reached, stages[-1])
