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

import contextlib
import dataclasses
import json
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

from sop.errors import UsageError
from sop.training.durable import (
    seal,
    set_aside,
    unseal,
    verify_checksums,
    write_checksums,
    write_json,
)
from sop.training.history import evaluation_at
from sop.training.optimizer import path_name
from sop.training.scores import best_score
from sop.training.state import TrainState

FOLDER = "checkpoints"
_SCORES = "scores.json"
_EMA = "ema"


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
        self.directory = Path(workdir).absolute() / FOLDER
        self._saving = 0
        _refuse_strange_names(self.directory)
        newest = checkpoint_managers.LatestN(n=keep)
        policy = checkpoint_managers.AnyPreservationPolicy([newest, _Best(self.directory.parent)])
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                async_options=_sealing(lambda: _write_checksums(self.directory, self._saving)),
            ),
            item_handlers={
                "variables": ocp.StandardCheckpointHandler(),
                _EMA: ocp.StandardCheckpointHandler(),
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
        optimizer = {"step": state.step, "opt_state": state.opt_state}
        average = {} if state.ema is None else {_EMA: state.averaged_variables}
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
            write_json(self.directory / str(step) / _SCORES, seal(scores))

    def scores(self, step: int) -> dict[str, float] | None:
        """What the evaluation of checkpoint `step` found; None: it was not evaluated."""
        return _scores(self.directory.parent, step)

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
        item = _EMA if which.endswith(f"/{_EMA}") else "variables"
        which = which.removesuffix(f"/{_EMA}")
        for step in self._unscored() if which == "best" else ():
            self._say(
                f"The scores of checkpoint {step} in {self.directory} are damaged or missing: it "
                "does not count among the best."
            )
        steps = _candidates(self.directory, which)
        for step in _averaged(self.directory, steps) if item == _EMA else steps:
            try:
                return self._restore_variables(step, template, item), step, self._epoch(step)
            except UsageError:
                raise
            except Exception as error:  # as in restore_newest
                self._say(
                    f"Checkpoint {step} in {self.directory} is damaged ({_first_line(error)})."
                )
        raise UsageError(
            f"No readable checkpoint is left for {which!r} in {self.directory}; "
            "choose another with --checkpoint."
        )

    def restore_average(self, step: int, template: Mapping[str, Any]) -> Any:
        """The averaged variables of a checkpoint; None: its run takes no averages."""
        if not (self.directory / str(step) / _EMA).exists():
            return None
        return self._restore_variables(step, template, _EMA)

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
        average = self._restore_variables(step, like.averaged_variables, _EMA)
        return state.replace(ema={name: average[name] for name in like.ema}), report

    def _verify(self, step: int, items: Sequence[str]) -> None:
        if not verify_checksums(self.directory / str(step), items):
            self._say(
                f"Checkpoint {step} in {self.directory} has no checksums; it is read as it is."
            )

    def _rename_damaged(self, step: int, error: Exception) -> None:
        self._say(
            f"Checkpoint {step} in {self.directory} is damaged ({_first_line(error)}); it is "
            f"renamed to damaged-{step} and the one before it is tried."
        )
        if jax.process_index() == 0:
            set_aside(self.directory / str(step))


def steps_in(workdir: str | os.PathLike) -> list[int]:
    """The steps of a work folder's whole checkpoints, in ascending order."""
    folders = (Path(workdir) / FOLDER).glob("*")
    return sorted(int(path.name) for path in folders if is_step(path.name) and path.is_dir())


def is_step(name: str) -> bool:
    """Whether it is the name of a checkpoint; '²'.isdigit() is True as well."""
    return name.isascii() and name.isdigit()


def _refuse_strange_names(directory: Path) -> None:
    """Raises UsageError for what Orbax would take for a checkpoint, or stumble over."""
    for path in directory.glob("*"):
        if path.name.isdigit() and not (is_step(path.name) and path.is_dir()):
            raise UsageError(f"{path} is no checkpoint: move it out of {directory}.")


def best_step(workdir: str | Path) -> int | None:
    """The step of the best evaluation, the later one of equals; None: never evaluated."""
    scored = [
        (best_score(scores), step)
        for step in steps_in(workdir)
        if (scores := _scores(workdir, step)) is not None
    ]
    return max(scored)[1] if scored else None


def saved_progress(workdir: str | os.PathLike) -> dict[str, Any]:
    """The progress of the newest checkpoint of which it can be read; {}: there is none."""
    for step in reversed(steps_in(workdir)):
        folder = Path(workdir) / FOLDER / str(step)
        with contextlib.suppress(OSError, ValueError):
            verify_checksums(folder, ["progress"])
            progress = json.loads((folder / "progress" / "metadata").read_bytes())
            if isinstance(progress, dict):
                return progress
    return {}


def refuse_converted(workdir: str | Path) -> None:
    """Raises UsageError where a work folder holds weights without a run, which nothing resumes."""
    folder = Path(workdir) / FOLDER / "0"
    if (folder / "variables").is_dir() and not (folder / "progress").exists():
        raise UsageError(
            f"Work folder {workdir} holds converted weights: train in another --workdir, starting "
            f"from them with --config.init_from={workdir}."
        )


def _candidates(directory: Path, which: str) -> list[int]:
    """The steps to try, first to last, for 'best', 'latest' or a step; see `restore_variables`."""
    steps = steps_in(directory.parent)[::-1]
    if not steps:
        raise UsageError(
            f"There is no checkpoint in {directory}; train first, or name another work folder."
        )
    if which in ("best", "latest"):
        best = best_step(directory.parent) if which == "best" else None
        return ([] if best is None else [best]) + [step for step in steps if step != best]
    if not is_step(which) or int(which) not in steps:
        raise UsageError(
            f"There is no checkpoint {which!r} in {directory}; use 'best', 'latest' "
            f"or one of {', '.join(map(str, sorted(steps)))}."
        )
    return [int(which)]


def _scores(workdir: str | Path, step: int) -> dict[str, float] | None:
    """The scores of a checkpoint, from beside it or, where these are damaged, from the history."""
    folder = Path(workdir) / FOLDER / str(step)
    for name in (_SCORES, "metrics/metrics"):  # the latter is of earlier versions
        try:
            return unseal((folder / name).read_bytes())[0]
        except OSError:
            continue
    return evaluation_at(workdir, step)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def _sealing(callback: Callable[[], None]) -> ocp.AsyncOptions:
    """Calls back in the first process when all files of a checkpoint are there but not its name."""
    return ocp.AsyncOptions(post_finalization_callback=callback)


def _write_checksums(directory: Path, step: int) -> None:
    """Of the checkpoint that Orbax is about to give its name."""
    unnamed = list(directory.glob(f"{step}.orbax-checkpoint-tmp*"))
    for folder in unnamed or [directory / str(step)]:
        write_checksums(folder)


def save_variables(workdir: str | Path, variables: Mapping[str, Any]) -> None:
    """Writes variables (host arrays) as checkpoint 0 of a work folder, e.g. converted weights.

    Raises:
      UsageError: the folder already has checkpoints.
    """
    directory = Path(workdir).absolute() / FOLDER
    if directory.exists() and any(directory.iterdir()):
        raise UsageError(f"{directory} already has checkpoints; choose an empty work folder.")
    options = ocp.CheckpointManagerOptions(
        async_options=_sealing(lambda: _write_checksums(directory, 0))
    )
    handlers = {"variables": ocp.StandardCheckpointHandler()}
    with ocp.CheckpointManager(directory, options=options, item_handlers=handlers) as manager:
        args = ocp.args.Composite(variables=ocp.args.StandardSave(dict(variables)))
        manager.save(0, args=args)
        manager.wait_until_finished()


def find_variables(path: str | Path) -> list[Path]:
    """The checkpoints that `path` names, to be tried first to last.

    Args:
      path: a work folder (its best checkpoint, then the latest ones) or one checkpoint's folder
        `WORKDIR/checkpoints/STEP`; either with `/ema` behind it for the averages there.
    Raises:
      UsageError: there is none.
    """
    path, item = _without_item(path)
    one = is_step(path.name) and path.parent.name == FOLDER
    directory, which = (path.parent, path.name) if one else (path / FOLDER, "best")
    steps = _candidates(directory, which)
    steps = _averaged(directory, steps) if item == _EMA else steps
    return [directory / str(step) for step in steps]


def _averaged(directory: Path, steps: Sequence[int]) -> list[int]:
    """Those of the steps at which averages were saved."""
    found = [step for step in steps if (directory / str(step) / _EMA).is_dir()]
    if not found:
        raise UsageError(
            f"No averages were saved in {directory}: its run had no config.ema_decay; leave "
            f"'/{_EMA}' out."
        )
    return found


def _without_item(path: str | Path) -> tuple[Path, str]:
    """'RUN/ema' → ('RUN', 'ema'), 'RUN' → ('RUN', 'variables')."""
    path = Path(path).absolute()
    return (
        (path.parent, _EMA)
        if path.name == _EMA and not (path / FOLDER).exists()
        else (path, "variables")
    )


def load_variables(path: str | Path) -> dict[str, Any]:
    """Variables as NumPy arrays, whatever their shapes, to initialise another run from.

    Args:
      path: see `find_variables`.
    Raises:
      UsageError: there is no checkpoint, or none can be read.
    """
    item = _without_item(path)[1]
    for step in find_variables(path):
        try:
            with ocp.PyTreeCheckpointer() as reader:
                verify_checksums(step, [item])
                tree = reader.metadata(step / item).item_metadata.tree
                as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
                return reader.restore(step / item, restore_args=as_numpy)
        except Exception as caught:  # as in Checkpoints.restore_newest
            error = caught
    raise UsageError(f"No checkpoint of {path} can be read ({_first_line(error)}).") from error


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path_name(p): tuple(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def shape_differences(wanted: Any, saved: Any) -> list[str]:
    """How two trees differ in names and shapes, one phrase each."""
    want, have = _shapes(wanted), _shapes(saved)
    missing = [f"{name} is missing" for name in want if name not in have]
    extra = [f"{name} is not of this model" for name in have if name not in want]
    shapes = [
        f"{name} has shape {have[name]} instead of {want[name]}"
        for name in want
        if name in have and want[name] != have[name]
    ]
    return missing + extra + shapes


def refuse_other_shapes(wanted: Any, saved: Any, what: str) -> None:
    """Raises UsageError, naming the first differences, unless names and shapes are equal."""
    found = shape_differences(wanted, saved)
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UsageError(
            f"The {what} is of another model: {'; '.join(found[:3])}{more}; use the config that "
            "it was made with, or another work folder."
        )
