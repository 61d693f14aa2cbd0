"""Checkpoints of a work folder: written atomically in the background, the good ones found again.

A checkpoint `WORKDIR/checkpoints/STEP/` has these items, so that evaluation and fine-tuning read
only the first or second:

- `variables`: {'params': …, 'batch_stats': …, …} as `module.apply` takes them,
- `ema`: the same of `TrainState.averaged_variables`, in runs that take averages,
- `optimizer`: {'step', 'opt_state'},
- `progress`: JSON {'epoch', 'evaluates', 'report', 'config', 'data'}: epochs gone by, whether an
  evaluation follows, what `Reporter.state` returned, the run's config, and what tells the data of
  each stage from others.

Beside them stand `checksums.json`, of every file of the items, which comes into being with the
checkpoint and is compared whenever it is read; and `scores.json`, of the evaluation that follows.

Where the run stands follows from the step (`sop.training.stages`).

A checkpoint that holds only `variables`, at step 0, is what weight conversion writes.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from sop.errors import UsageError, first_line
from sop.training.durable import seal, verify_checksums, write_json
from sop.training.saved import (
    EMA,
    FOLDER,
    SCORES,
    averaged,
    best_step,
    candidates,
    refuse_strange_names,
    scores_of,
    steps_in,
)
from sop.training.state import TrainState
from sop.training.storage import absolute, set_aside
from sop.training.variables import refuse_other_shapes, sealing


@dataclasses.dataclass(frozen=True)
class _Best:
    """Preserves the checkpoint of the best evaluation in a work folder."""

    workdir: Path

    def should_preserve(self, checkpoints, *, context) -> Sequence[bool]:
        best = best_step(self.workdir)
        return [info.step == best for info in checkpoints]


class Checkpoints:
    """The checkpoints of one work folder.

    Args:
      workdir: the work folder.
      keep: how many of the newest are kept, beside the best by `sop.training.scores`.
      read_only: evaluation; nothing is created, moved or removed.
      say: called with each sentence for the user.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        keep: int = 3,
        read_only: bool = False,
        say: Callable[[str], None] = print,
    ):
        self._say = say
        self.directory = absolute(workdir) / FOLDER
        self._saving = 0
        refuse_strange_names(self.directory)
        newest = checkpoint_managers.LatestN(n=keep)
        policy = checkpoint_managers.AnyPreservationPolicy([newest, _Best(self.directory.parent)])
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                async_options=sealing(self.directory, lambda: self._saving),
            ),
            item_handlers={
                "variables": ocp.StandardCheckpointHandler(),
                EMA: ocp.StandardCheckpointHandler(),
                "optimizer": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
            },
        )

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Begins to write a checkpoint; returns once the state has left the devices.

        It appears under its name only when it is whole. Does nothing where the step is there.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if jax.process_count() == 1:
            # Every device has all of it. Of that Orbax would take a slice from each, and compile a
            # program for each shape and device.
            state = jax.tree.map(lambda x: x.addressable_data(0), state)
        optimizer = {"step": state.step, "opt_state": state.opt_state}
        average = {} if state.ema is None else {EMA: state.averaged_variables}
        items = ocp.args.Composite(
            **{name: ocp.args.StandardSave(tree) for name, tree in average.items()},
            variables=ocp.args.StandardSave(state.variables),
            optimizer=ocp.args.StandardSave(optimizer),
            progress=ocp.args.JsonSave(progress),
        )
        self._manager.wait_until_finished()  # the one before, whose step the callback still needs
        self._saving = step
        self._manager.save(step, args=items, force=True)

    def score(self, step: int, scores: Mapping[str, float]) -> None:
        """Writes what an evaluation of checkpoint `step` found, once the checkpoint is whole."""
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            write_json(self.directory / str(step) / SCORES, seal(scores))

    def scores(self, step: int) -> dict[str, float] | None:
        """What the evaluation of checkpoint `step` found; None: it was not evaluated."""
        return scores_of(self.directory.parent, step)

    def discard(self, step: int) -> None:
        """Sets aside a checkpoint of which nothing good can come."""
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            set_aside(self.directory / str(step))
        self._manager.reload()

    def latest_step(self) -> int | None:
        """The newest whole checkpoint's step."""
        self._manager.wait_until_finished()
        return self._manager.latest_step()

    def restore_newest(
        self, template: Callable[[int], TrainState]
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The state and report of the newest checkpoint that can be read; None: there is none.

        One that cannot be read is reported, renamed to `damaged-STEP` and passed over.

        Args:
          template: step → the state to fill: `jax.ShapeDtypeStruct`s with shardings.
        Raises:
          UsageError: the checkpoint is of another model, or every checkpoint is damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            restored, error = None, None
            try:
                restored = self._restore(step, template)
            except UsageError:
                raise
            except Exception as caught:  # Orbax and TensorStore raise many kinds for damaged files
                error = caught
            if np.all(multihost_utils.process_allgather(np.array(error is None))):
                return restored
            self._rename_damaged(step, error or OSError("another process cannot read it"))
            multihost_utils.sync_global_devices(f"set aside {step}")
            self._manager.reload()
        if steps:
            raise UsageError(
                f"None of the checkpoints in {self.directory} can be read; remove that folder to "
                "train from the start, or restore it from a backup."
            )
        return None

    def restore_variables(
        self, which: str, template: Mapping[str, Any] | jax.sharding.Sharding
    ) -> tuple[Any, int, float]:
        """The variables of one checkpoint, for evaluation.

        Args:
          which: 'best' (the latest where nothing was evaluated), 'latest', or a step; with '/ema'
            behind it for the averages there.
          template: variables to fill: `jax.ShapeDtypeStruct`s with shardings; or the sharding of
            whatever was saved.
        Returns:
          (variables, step, epoch).
        Raises:
          UsageError: no such checkpoint, a damaged one asked for by name, or one of another model.
        """
        item = EMA if which.endswith(f"/{EMA}") else "variables"
        which = which.removesuffix(f"/{EMA}")
        for step in self._unscored() if which == "best" else ():
            self._say(
                f"The scores of checkpoint {step} in {self.directory} are damaged or missing: it "
                "does not count among the best."
            )
        steps = candidates(self.directory, which)
        for step in averaged(self.directory, steps) if item == EMA else steps:
            try:
                return self._restore_variables(step, template, item), step, self._epoch(step)
            except UsageError:
                raise
            except Exception as error:  # as in restore_newest
                self._say(
                    f"Checkpoint {step} in {self.directory} is damaged ({first_line(error)})."
                )
        raise UsageError(
            f"No readable checkpoint is left for {which!r} in {self.directory}; "
            "choose another with --checkpoint."
        )

    def restore_average(self, step: int, template: Mapping[str, Any]) -> Any:
        """The averaged variables of a checkpoint; None: its run takes no averages."""
        if not (self.directory / str(step) / EMA).exists():
            return None
        return self._restore_variables(step, template, EMA)

    def close(self) -> None:
        """Waits until what was begun is written."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _restore_variables(
        self,
        step: int,
        template: Mapping[str, Any] | jax.sharding.Sharding,
        item: str = "variables",
    ) -> Any:
        self._verify(step, [item])
        saved = self._manager.item_metadata(step)[item]
        if saved is None:
            raise FileNotFoundError(f"its item '{item}' is missing")
        if isinstance(template, jax.sharding.Sharding):
            on_devices = partial(jax.ShapeDtypeStruct, sharding=template)
            template = jax.tree.map(lambda x: on_devices(x.shape, x.dtype), saved.tree)
        refuse_other_shapes(template, saved.tree, f"checkpoint {step} in {self.directory}")
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore(dict(template))})
        return self._manager.restore(step, args=args)[item]

    def _unscored(self) -> list[int]:
        """Checkpoints that were to be evaluated and have no scores."""
        return [
            step
            for step in steps_in(self.directory.parent)
            if self.scores(step) is None and self._was_evaluated(step)
        ]

    def _was_evaluated(self, step: int) -> bool:
        try:
            return self._progress(step).get("evaluates", False)
        except Exception:  # as in restore_newest
            return False

    def _epoch(self, step: int) -> float:
        """Of a trained checkpoint; 0 for one that holds only variables."""
        if not (self.directory / str(step) / "progress").exists():
            return 0.0
        return self._progress(step)["epoch"]

    def _progress(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(progress=ocp.args.JsonRestore())
        progress = self._manager.restore(step, args=args)["progress"]
        if progress is None:
            raise FileNotFoundError("its item 'progress' is missing")
        return progress

    def _restore(self, step: int, template) -> tuple[TrainState, dict[str, Any]]:
        verify_checksums(self.directory / str(step), ["optimizer", "progress"])
        report = self._progress(step)["report"]
        like = template(step)
        variables = self._restore_variables(step, like.variables)
        optimizer = {"step": like.step, "opt_state": like.opt_state}
        args = ocp.args.Composite(optimizer=ocp.args.StandardRestore(optimizer))
        optimizer = self._manager.restore(step, args=args)["optimizer"]
        state = like.replace(
            step=optimizer["step"],
            params=variables.pop("params"),
            model_state=variables,
            opt_state=optimizer["opt_state"],
        )
        if like.ema is None:
            return state, report
        average = self._restore_variables(step, like.averaged_variables, EMA)
        return state.replace(ema={name: average[name] for name in like.ema}), report

    def _verify(self, step: int, items: Sequence[str]) -> None:
        if not verify_checksums(self.directory / str(step), items):
            self._say(
                f"Checkpoint {step} in {self.directory} has no checksums; it is read as it is."
            )

    def _rename_damaged(self, step: int, error: Exception) -> None:
        self._say(
            f"Checkpoint {step} in {self.directory} is damaged ({first_line(error)}); it is "
            f"renamed to damaged-{step} and the one before it is tried."
        )
        if jax.process_index() == 0:
            set_aside(self.directory / str(step))
