"""From a checked config to a run: its data, model and work folder put together."""

import platform
import signal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import metadata
from itertools import chain
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError
from ml_collections import ConfigDict

import input_pipeline
from sop.config import check_batches, flatten, stage_configs
from sop.config.validation import as_json
from sop.errors import UsageError
from sop.interruption import tell_of_end
from sop.training import distributed, loop, pretrained
from sop.training.compiling import check_compiler_options, keep_compiled
from sop.training.durable import refuse_full_disk
from sop.training.memory import check_memory
from sop.training.optimizer import make_optimizer
from sop.training.partners import Partners, ends_told
from sop.training.provenance import recorded
from sop.training.reporting import Reporter, report_evaluation
from sop.training.saved import refuse_converted, steps_in
from sop.training.stages import identities, make_stages
from sop.training.state import init_state, init_variables
from sop.training.step import make_mesh
from sop.training.storage import locate
from sop.training.task import make_model
from sop.training.workdir import (
    WorkDir,
    refuse_another_folder,
    refuse_another_model,
    refuse_moved_classes,
    with_whole_model,
)

__all__ = ["ends_told", "evaluate", "join", "keep_compiled", "train"]

# Whose versions decide about numbers.
_PACKAGES = ("sop", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def join(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float
) -> Partners | None:
    """Joins this process to the others of its run; see `sop.training.distributed.initialize`."""
    partners = distributed.initialize(coordinator, num_processes, process_id, timeout)
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # JAX takes it for itself
    if partners:
        tell_of_end(partners.leave)
    return partners


def train(config: ConfigDict, workdir: str) -> None:
    """Trains in `workdir`, from its newest checkpoint if there is one.

    Raises:
      UsageError: config, data, model, devices or work folder do not fit together.
    """
    config = with_whole_model(config)
    _refuse_unlike(config, mode="train")
    check_batches(config, jax.device_count())
    check_compiler_options(dict(config.compiler_options))
    model, configs = make_model(config), stage_configs(config)
    data = input_pipeline.create(configs, jax.process_index(), jax.process_count())
    distributed.refuse_differences("data", {"data": identities(data)})
    stages = make_stages(configs, data)
    shapes = _trace(model, [each.image_shape for pair in data for each in pair])
    optimizers = [
        make_optimizer(each.config.optimizer, each.schedule, shapes["params"]) for each in stages
    ]
    mesh, cached = make_mesh(), input_pipeline.cached_bytes(chain.from_iterable(data))
    for stage, tx in zip(stages, optimizers, strict=True):
        batches = {"batch_size": stage.train, "eval_batch_size": stage.evaluation}
        begin = partial(init_state, tx=tx, ema=config.ema_decay is not None)
        state = jax.eval_shape(begin, shapes)
        check_memory(stage.config, batches, model, shapes, state, mesh, cached)
    refuse_converted(workdir)
    if config.init_from and not steps_in(workdir):
        pretrained.find(config.init_from)
    with refuse_full_disk(workdir), ExitStack() as held:
        token = distributed.shared_token()

        def settle() -> None:
            if jax.process_index() > 0:
                return
            folder = held.enter_context(WorkDir(workdir))
            folder.settle_config(config)
            folder.settle_data(identities(data))
            folder.sign(token)

        distributed.together(settle)
        distributed.together(partial(refuse_another_folder, workdir, token))
        held.enter_context(_removal_refused(workdir))
        if jax.process_index() == 0:
            held.enter_context(recorded(workdir, _PACKAGES))
        reporter = Reporter(
            workdir,
            stages,
            log_every=config.log_every_steps,
            profile_steps=config.profile,
            enabled=jax.process_index() == 0,
        )
        held.callback(reporter.close)
        if loop.train(config, locate(workdir), model, stages, optimizers, shapes, mesh, reporter):
            reporter.finish()
        else:
            reporter.say(f"Stopped and saved in {workdir}; the same command goes on from here.")


def evaluate(config: ConfigDict, workdir: str, checkpoint: str) -> None:
    """Evaluates a checkpoint of `workdir`: 'best', 'latest' or a step.

    Raises:
      UsageError: as for `train`, or there is no such checkpoint.
    """
    _refuse_unlike(config, mode="eval", checkpoint=checkpoint, steps=steps_in(workdir))
    check_batches(config, jax.device_count(), ["eval_batch_size"])
    refuse_another_model(workdir, config)
    config = stage_configs(config)[-1].copy_and_resolve_references()
    if config.input.test_transforms is not None:
        config.input.eval_transforms = config.input.test_transforms
    evaluation = input_pipeline.create_eval(config, jax.process_index(), jax.process_count())
    distributed.refuse_differences("data", evaluation.identity)
    refuse_moved_classes(workdir, config, evaluation.identity)
    model = make_model(config)
    shapes = _trace(model, [evaluation.image_shape])
    mesh, cached = make_mesh(), input_pipeline.cached_bytes([evaluation])
    check_memory(config, {"eval_batch_size": evaluation}, model, shapes, shapes, mesh, cached)
    scores = loop.evaluate_checkpoint(
        config, locate(workdir), checkpoint, model, shapes, evaluation, mesh
    )
    if jax.process_index() == 0:
        with refuse_full_disk(workdir):
            report_evaluation(workdir, scores, config)


def _refuse_unlike(config: ConfigDict, **flags: Any) -> None:
    """Refuses processes that were started with other configs, flags, devices or packages."""
    versions = {f"version of {name}": metadata.version(name) for name in _PACKAGES}
    facts = {**flatten(as_json(config)), **flags, **versions, "Python": platform.python_version()}
    distributed.refuse_differences("configs", {**facts, "devices": jax.local_device_count()})


@contextmanager
def _removal_refused(workdir: str) -> Iterator[None]:
    """Names the cause of what libraries raise where the work folder was removed meanwhile."""
    try:
        yield
    except Exception as error:
        if locate(workdir).exists():
            raise
        raise UsageError(
            f"Work folder {workdir} was removed while the run was using it: start the run again."
        ) from error


def _trace(model: nn.Module, image_shapes: Iterable[tuple[int, int, int]]) -> Any:
    """Shapes of the model's variables, once it has taken images of all sizes, before compilation.

    Raises:
      UsageError: the model cannot take some, or its variables depend on the size.
    """
    first, *others = dict.fromkeys(image_shapes)
    shapes = jax.eval_shape(partial(init_variables, model, 0, first))
    for shape in others:
        images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        try:
            jax.eval_shape(partial(model.apply, train=False), shapes, images)
        except ScopeParamShapeError as error:
            raise UsageError(
                f"config.model is made for images of {first[:2]} pixels and cannot take those "
                f"of {shape[:2]}: let all transforms end in one size."
            ) from error
    return shapes
