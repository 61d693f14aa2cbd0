"""Training from a config to its results: step, watch, evaluate, checkpoint, stop and go on."""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sop.data.normalization import normalize
from sop.errors import UsageError
from sop.training import pretrained
from sop.training.checkpoints import Checkpoints, load_variables, steps_in
from sop.training.evaluation import evaluate, is_finite
from sop.training.optimizer import make_optimizer, make_schedule, matches_any
from sop.training.reporting import Reporter
from sop.training.signals import StopRequest
from sop.training.stages import EvalData, Stage, stage_of
from sop.training.state import TrainState, init_state, init_variables
from sop.training.step import (
    data_parallel,
    make_eval_step,
    make_train_step,
    replicated,
    to_devices,
)

# Steps whose metrics are still on the devices: enough that these never wait for the host, few
# enough that a diverged run stops at once and that memory for batches stays bounded.
_IN_FLIGHT = 2


def train(
    config: ConfigDict,
    workdir: Path,
    model: nn.Module,
    stages: Sequence[Stage],
    mesh: Mesh,
    reporter: Reporter,
) -> bool:
    """Trains through all stages, from the newest good checkpoint in `workdir` if there is one.

    Args:
      config: the whole experiment, checked.
      workdir: the run's folder, locked by the caller.
      model: of `config.model`.
      stages: see `sop.training.stages.make_stages`.
      mesh: all devices; every process calls this function.
      reporter: what the user sees.
    Returns:
      True at the end of the last stage, False where a signal stopped the run before.
    Raises:
      UsageError: the loss or gradient became NaN or infinite; or what `Checkpoints` refuses.
    """
    image_shape = stages[0].train.image_shape
    make_variables = partial(init_variables, model, config.seed, image_shape)
    abstract_params = jax.eval_shape(make_variables)["params"]
    schedules = [_schedule(stage) for stage in stages]
    optimizers = [
        make_optimizer(stage.config.optimizer, schedule, abstract_params)
        for stage, schedule in zip(stages, schedules, strict=True)
    ]

    def template(progress: dict[str, Any]) -> TrainState:
        tx = optimizers[progress["stage"]]
        return _abstract(lambda: init_state(make_variables(), tx), mesh)

    loaded = None
    if config.init_from and not steps_in(workdir):
        loaded = load_variables(config.init_from)
    checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep, say=reporter.say)
    with closing(checkpoints), StopRequest(mesh) as stop:
        restored = checkpoints.restore_newest(template)
        if restored is None:
            variables = jax.jit(make_variables, out_shardings=replicated(mesh))()
            if loaded is not None:
                variables = pretrained.merge(variables, loaded, config.init_from, reporter.say)
                variables = jax.device_put(variables, replicated(mesh))
            begin = partial(init_state, tx=optimizers[0])
            state = jax.jit(begin, out_shardings=replicated(mesh))(variables)
            progress = {"stage": 0}
        else:
            state, progress = restored
        step = int(state.step)
        reporter.start(
            config, state.variables, mesh.devices, step=step, saved=progress.get("report")
        )
        if step:
            reporter.say(f"Going on from the checkpoint at step {step}.")

        for stage in stages[progress["stage"] :]:
            if stage.index != progress["stage"]:
                progress = {"stage": stage.index}
                renew = jax.jit(optimizers[stage.index].init, out_shardings=replicated(mesh))
                state = state.replace(opt_state=renew(state.params))
            run = _StageRun(model, optimizers[stage.index], stage, mesh, checkpoints, reporter)
            state, finished = run(state, progress, stop)
            if not finished:
                return False
    return True


class _StageRun:
    """One stage of a run, from a state somewhere in it to its end."""

    def __init__(
        self,
        model: nn.Module,
        tx: Any,
        stage: Stage,
        mesh: Mesh,
        checkpoints: Checkpoints,
        reporter: Reporter,
    ):
        config = stage.config
        prepare = partial(normalize, name=config.input.normalization, dtype=jnp.dtype(config.dtype))
        frozen = config.optimizer.frozen if config.optimizer.freeze_batch_norm else ()
        step = make_train_step(
            model,
            tx,
            normalize=prepare,
            seed=config.seed,
            label_smoothing=config.label_smoothing,
            frozen_batch_norm=matches_any(frozen, "config.optimizer.frozen"),
        )
        self._train_step = data_parallel(step, mesh, donate=True)
        self._eval_step = data_parallel(make_eval_step(model, normalize=prepare), mesh)
        self._stage, self._mesh = stage, mesh
        self._checkpoints, self._reporter = checkpoints, reporter
        self._in_flight: deque[tuple[int, Any]] = deque()

    def __call__(
        self, state: TrainState, progress: dict[str, Any], stop: StopRequest
    ) -> tuple[TrainState, bool]:
        """The state at the end, or where a stop was asked for, and whether it is the end."""
        stage, config = self._stage, self._stage.config
        batches = stage.train.iterator()
        if "data" in progress:
            batches.set_state(progress["data"])
        for step in range(int(state.step) + 1, stage.last_step + 1):
            batch = to_devices(self._mesh, next(batches))
            state, metrics = self._train_step(state, batch)
            self._in_flight.append((step, metrics))
            self._settle(_IN_FLIGHT)

            stopping = stop.agreed()
            ends_epoch, last = stage.ends_epoch(step), step == stage.last_step
            epochs = round(stage.epoch_at(step)) if ends_epoch else 0
            evaluates = last or (ends_epoch and epochs % config.eval_every_epochs == 0)
            every = config.checkpoint.every_steps
            saves = last or evaluates or stopping or (step % every == 0 if every else ends_epoch)
            if not saves:
                continue
            self._settle(0)
            with self._reporter.pause():
                scores = self._evaluate(state, step) if evaluates else None
                progress = {
                    "stage": stage.index,
                    "epoch": stage.epoch_at(step),
                    "data": batches.get_state(),
                    "report": self._reporter.state(),
                }
                self._checkpoints.save(state, progress, scores)
            if stopping and not last:
                return state, False
        return state, True

    def _settle(self, allowed: int) -> None:
        """Waits for the oldest steps until at most `allowed` are in flight, and reports them."""
        while len(self._in_flight) > allowed:
            step, metrics = self._in_flight.popleft()
            metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if not is_finite(metrics):
                self._refuse(f"in training step {step}", metrics)
            self._reporter.train(step, metrics)

    def _evaluate(self, state: TrainState, step: int) -> dict[str, float]:
        scores = evaluate(self._eval_step, self._mesh, state.variables, self._stage.evaluation)
        if not is_finite(scores):
            self._refuse(f"in the evaluation after step {step}", scores)
        self._reporter.evaluation(step, scores)
        return scores

    def _refuse(self, where: str, metrics: dict[str, float]) -> None:
        good = self._checkpoints.latest_step()
        kept = (
            "no checkpoint was saved before"
            if good is None
            else (f"the last good checkpoint is {good} in {self._checkpoints.directory}")
        )
        values = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
        raise UsageError(
            f"The run became NaN or infinite {where} ({values}) and was stopped without saving "
            f"that state; {kept}. Lower config.optimizer.learning_rate, warm it up, or set "
            "config.optimizer.clip_norm."
        )


def evaluate_checkpoint(
    config: ConfigDict,
    workdir: Path,
    which: str,
    model: nn.Module,
    evaluation: EvalData,
    mesh: Mesh,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Evaluates one checkpoint of a work folder.

    Args:
      which: 'best', 'latest' or a step.
      evaluation: see `sop.training.stages.EvalData`.
    Returns:
      'step', 'epoch', 'loss', 'top1', 'top5' and 'count'.
    """
    make_variables = partial(init_variables, model, config.seed, evaluation.image_shape)
    checkpoints = Checkpoints(workdir, read_only=True, say=say)
    variables, step, epoch = checkpoints.restore_variables(which, _abstract(make_variables, mesh))
    prepare = partial(normalize, name=config.input.normalization, dtype=jnp.dtype(config.dtype))
    eval_step = data_parallel(make_eval_step(model, normalize=prepare), mesh)
    return {"step": step, "epoch": epoch, **evaluate(eval_step, mesh, variables, evaluation)}


def learning_rate_at(stages: Sequence[Stage]) -> Callable[[int], float]:
    """Optimizer steps taken → the learning rate of the next one, over all stages."""
    schedules = [_schedule(stage) for stage in stages]

    def learning_rate(step: int) -> float:
        stage = stage_of(stages, step + 1)
        return float(schedules[stage.index](step - stage.first_step))

    return learning_rate


def _schedule(stage: Stage):
    config = stage.config
    return make_schedule(
        config.schedule,
        config.optimizer.learning_rate,
        config.num_epochs,
        stage.train.steps_per_epoch,
    )


def _abstract(make: Callable[[], Any], mesh: Mesh) -> Any:
    """Shapes of what `make` returns, to be filled with arrays replicated over the mesh."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
        jax.eval_shape(make),
    )
