"""Training from a config to its results: step, watch, evaluate, checkpoint, stop and go on."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sop.config.validation import as_json
from sop.errors import UsageError
from sop.models import get_backbone
from sop.progress import shown
from sop.training import pretrained
from sop.training.checkpoints import Checkpoints
from sop.training.evaluation import is_finite
from sop.training.memory import check_compiled
from sop.training.optimizer import keep_momentum
from sop.training.reporting import Reporter
from sop.training.saved import steps_in
from sop.training.signals import StopRequest
from sop.training.stages import EvalData, Stage, identities, stage_at
from sop.training.state import TrainState, init_state, init_variables
from sop.training.step import (
    batch_shapes,
    data_parallel,
    on_mesh,
    replicated,
    to_devices,
)
from sop.training.task import Task, make_task

# Steps whose metrics are still on the devices: enough that these never wait for the host, few
# enough that a diverged run stops at once and that memory for batches stays bounded.
_IN_FLIGHT = 2
# How the refusal of a run begins whose loss or gradient is that.
DIVERGED = "The run became NaN or infinite"


def train(
    config: ConfigDict,
    workdir: Path,
    model: nn.Module,
    stages: Sequence[Stage],
    optimizers: Sequence[optax.GradientTransformation],
    shapes: dict[str, Any],
    mesh: Mesh,
    reporter: Reporter,
) -> bool:
    """Trains through all stages, from the newest good checkpoint in `workdir` if there is one.

    Args:
      config: the whole experiment, checked.
      workdir: the run's folder, locked by the caller.
      model: of `config.model`.
      stages: see `sop.training.stages.make_stages`.
      optimizers: of each stage, see `sop.training.optimizer.make_optimizer`.
      shapes: the model's variables as `jax.ShapeDtypeStruct`s.
      mesh: all devices; every process calls this function.
      reporter: what the user sees.
    Returns:
      True at the end of the last stage, False where a signal stopped the run before.
    Raises:
      UsageError: the loss or gradient became NaN or infinite; or what `Checkpoints` refuses.
    """

    begin = partial(init_state, ema=config.ema_decay is not None)

    def template(step: int) -> TrainState:
        tx = optimizers[stages.index(stage_at(stages, step))]
        return on_mesh(mesh, jax.eval_shape(partial(begin, tx=tx), shapes))

    loaded = None
    if config.init_from and not steps_in(workdir):
        loaded = pretrained.load(config.init_from)
    checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep, say=reporter.say)
    with StopRequest(mesh) as stop, closing(checkpoints):
        restored = checkpoints.restore_newest(template)
        if restored is None:
            variables = _initialize(config, model, stages[0], loaded, mesh, reporter)
            first = partial(begin, tx=optimizers[0])
            state = jax.jit(first, out_shardings=replicated(mesh))(variables)
            report = None
        else:
            state, report = restored
        step = int(state.step)
        scores = checkpoints.scores(step) if step else None
        reporter.start(
            config, state.variables, mesh.devices, step=step, saved=report, scores=scores
        )
        if step:
            reporter.say(f"Going on from the checkpoint at step {step}.")
        data = identities((stage.train, stage.evaluation) for stage in stages)
        whole = {"config": as_json(config), "data": data}
        unscored = stage_at(stages, step) if step and scores is None else None

        for stage, tx in zip(stages, optimizers, strict=True):
            if step >= stage.last_step and stage is not unscored:
                continue
            if 0 < stage.first_step == int(state.step):
                renew = jax.jit(tx.init, out_shardings=replicated(mesh))
                opt_state = renew(state.params)
                if stage.config.optimizer.keep_momentum:
                    opt_state = keep_momentum(state.opt_state, opt_state)
                state = state.replace(opt_state=opt_state)
            run = _StageRun(whole, model, tx, stage, mesh, checkpoints, reporter)
            if stage is unscored:  # the run ended between a checkpoint and its evaluation
                run.evaluate(state)
            state, finished = run(state, stop)
            if not finished:
                return False
    return True


def _initialize(config, model, stage, loaded, mesh, reporter):
    """New variables, or those of `config.init_from` where they fit."""
    make = partial(init_variables, model, config.seed, stage.train.image_shape)
    variables = jax.jit(make, out_shardings=replicated(mesh))()
    if loaded is None:
        return variables
    resampled = get_backbone(config.model).resampled
    variables = pretrained.merge(variables, loaded, config.init_from, reporter.say, resampled)
    return jax.device_put(variables, replicated(mesh))


class _StageRun:
    """One stage of a run, from a state somewhere in it to its end.

    `whole` is what checkpoints keep of the whole run: its config and what identifies its data.
    """

    def __init__(
        self,
        whole: dict[str, Any],
        model: nn.Module,
        tx: Any,
        stage: Stage,
        mesh: Mesh,
        checkpoints: Checkpoints,
        reporter: Reporter,
    ):
        self._task = make_task(stage.config, model)
        options = dict(stage.config.compiler_options)
        train_step = self._task.train_step(tx)
        self._train_step = data_parallel(train_step, mesh, donate=True, options=options)
        self._eval_step = data_parallel(self._task.eval_step(), mesh)
        self._whole, self._stage, self._mesh = whole, stage, mesh
        self._checkpoints, self._reporter = checkpoints, reporter
        self._in_flight: deque[tuple[int, Any]] = deque()

    def __call__(self, state: TrainState, stop: StopRequest) -> tuple[TrainState, bool]:
        """The state at the end, or where a stop was asked for, and whether it is the end."""
        stage = self._stage
        with self._reporter.pause():
            self._compile(state)
        batches = stage.batches(int(state.step))
        for step in range(int(state.step) + 1, stage.last_step + 1):
            state, metrics = self._train_step(state, to_devices(self._mesh, next(batches)))
            self._in_flight.append((step, metrics))
            self._settle(_IN_FLIGHT if stop.has_work else 0)
            stop.has_work = True
            stopping = stop.agreed()
            if stopping or self._saves(step):
                self._settle(0)
                with self._reporter.pause():
                    self._save(state, step)
                    if not stopping:
                        self.evaluate(state)
            if stopping:
                return state, False
        return state, True

    def _save(self, state: TrainState, step: int) -> None:
        progress = {
            "epoch": self._stage.epoch_at(step),
            "evaluates": self._evaluates(step),
            "report": self._reporter.state(),
            **self._whole,
        }
        self._checkpoints.save(state, progress)

    def evaluate(self, state: TrainState) -> None:
        """Evaluates the state of a checkpoint, if one is due at its step, and scores it."""
        step = int(state.step)
        if not self._evaluates(step):
            return
        average = None if state.ema is None else state.averaged_variables
        both, stage = (state.variables, average), self._stage
        evaluated = stage.evaluation, stage.config
        scores = _evaluate_both(self._task, self._eval_step, self._mesh, *both, *evaluated)
        if not is_finite(scores):
            self._checkpoints.discard(step)
            self._refuse(f"in the evaluation after step {step}", scores)
        self._reporter.evaluation(step, scores)
        self._checkpoints.score(step, scores)

    def _compile(self, state: TrainState) -> None:
        """Refuses what the devices cannot hold, of evaluation too, before the first step."""
        mesh, stage, size = self._mesh, self._stage, self._stage.config.batch_size
        begun = time.monotonic()
        self._reporter.say("Compiling the steps of training and evaluation …")
        for rows in stage.train.buckets:
            batch = batch_shapes(mesh, size, rows)
            check_compiled("batch_size", size, self._train_step, (state, batch), mesh)
        _compile_evaluation(stage.config, self._eval_step, state.variables, stage.evaluation, mesh)
        self._reporter.say(f"… compiled in {time.monotonic() - begun:.1f} s.")

    def _evaluates(self, step: int) -> bool:
        stage, every = self._stage, self._stage.config.eval_every_epochs
        regular = stage.ends_epoch(step) and round(stage.epoch_at(step)) % every == 0
        return regular or step == stage.last_step

    def _saves(self, step: int) -> bool:
        every = self._stage.config.checkpoint.every_steps
        regular = step % every == 0 if every else self._stage.ends_epoch(step)
        return regular or self._evaluates(step)

    def _settle(self, allowed: int) -> None:
        """Waits for the oldest steps until at most `allowed` are in flight, and reports them."""
        while len(self._in_flight) > allowed:
            step, metrics = self._in_flight.popleft()
            metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if not is_finite(metrics):
                self._refuse(f"in training step {step}", metrics)
            self._reporter.train(step, metrics)

    def _refuse(self, where: str, metrics: dict[str, float]) -> None:
        good = self._checkpoints.latest_step()
        kept = (
            "no checkpoint was saved before"
            if good is None
            else (f"the last good checkpoint is {good} in {self._checkpoints.directory}")
        )
        values = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
        raise UsageError(
            f"{DIVERGED} {where} ({values}) and was stopped without saving "
            f"that state; {kept}. Lower config.optimizer.learning_rate, warm it up, or set "
            "config.optimizer.clip_norm."
        )


def evaluate_checkpoint(
    config: ConfigDict,
    workdir: Path,
    which: str,
    model: nn.Module,
    shapes: dict[str, Any],
    evaluation: EvalData,
    mesh: Mesh,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Evaluates one checkpoint of a work folder.

    Args:
      which: 'best', 'latest' or a step; with '/ema' behind it the same.
      shapes: the model's variables as `jax.ShapeDtypeStruct`s.
      evaluation: see `sop.training.stages.EvalData`.
    Returns:
      'step', 'epoch' and the scores of the task; see `_evaluate_both`.
    """
    with closing(Checkpoints(workdir, read_only=True, say=say)) as checkpoints:
        template = on_mesh(mesh, shapes)
        which = which.removesuffix("/ema")
        variables, step, epoch = checkpoints.restore_variables(which, template)
        average = checkpoints.restore_average(step, template)
    task = make_task(config, model)
    eval_step = data_parallel(task.eval_step(), mesh)
    if jax.process_index() == 0:
        say(f"Compiling the step of evaluation, for checkpoint {step} …")
    _compile_evaluation(config, eval_step, variables, evaluation, mesh)
    scores = _evaluate_both(task, eval_step, mesh, variables, average, evaluation, config)
    return {"step": step, "epoch": epoch, **scores}


def _evaluate_both(
    task: Task,
    eval_step: Any,
    mesh: Mesh,
    variables: Any,
    average: Any,
    data: EvalData,
    config: ConfigDict,
) -> dict[str, Any]:
    """The scores of the variables and, with 'ema_' before their names, of their average."""
    scores = task.evaluate(eval_step, mesh, variables, _watched(data, config), data)
    if average is not None:
        averages = task.evaluate(eval_step, mesh, average, _watched(data, config), data)
        scores |= {f"ema_{name}": averages[name] for name in averages if name != "count"}
    return scores


def _watched(evaluation: EvalData, config: ConfigDict) -> Iterable[dict[str, Any]]:
    """Its batches, while process 0 shows how far they have come."""
    if jax.process_index() > 0:
        return evaluation
    total, size = evaluation.num_examples, config.eval_batch_size
    # Images of several sizes do not fill all batches but the last: the bar is then a little ahead.
    counted = ((max(min(size, total - i * size), 0), b) for i, b in enumerate(evaluation))
    return shown(counted, total, "evaluating")


def _compile_evaluation(
    config: ConfigDict, eval_step: Any, variables: Any, data: EvalData, mesh: Mesh
) -> None:
    size = config.eval_batch_size
    for rows in data.buckets:
        batch = batch_shapes(mesh, size, rows)
        check_compiled("eval_batch_size", size, eval_step, (variables, batch), mesh)
