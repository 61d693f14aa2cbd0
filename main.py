"""Trains or evaluates an experiment: `main.py --config=configs/NAME.py --workdir=DIR`."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from flax.errors import ScopeParamShapeError
from ml_collections import ConfigDict, config_flags

import input_pipeline
from configs import default
from sop.errors import UsageError
from sop.models import create_model
from sop.training import config as configuration
from sop.training import distributed
from sop.training.checkpoints import find_variables, refuse_converted, steps_in
from sop.training.loop import evaluate_checkpoint, learning_rate_at, train
from sop.training.reporting import Reporter, report_evaluation
from sop.training.stages import make_stages, stage_configs
from sop.training.state import init_variables
from sop.training.step import AXIS, make_mesh
from sop.training.workdir import WorkDir, check_same_model

_DEFAULT_CONFIG = Path(__file__).with_name("configs") / "digits.py"
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    f"The experiment, {_DEFAULT_CONFIG} if not given; --config.KEY=VALUE changes a key of it.",
    lock_config=False,
    accept_new_attributes=True,  # options of config.model.attention and the like
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "What to do.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "To evaluate: 'best', 'latest' or a step.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of this run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def _make_model(config: ConfigDict):
    axis_name = AXIS if config.sync_batch_norm else None
    return create_model(config.model, dtype=jnp.dtype(config.dtype), axis_name=axis_name)


def _check_image_sizes(model, shapes: Sequence[tuple[int, int, int]]) -> None:
    """A network refuses images that it cannot take when it is traced: before any compilation."""
    variables = jax.eval_shape(partial(init_variables, model, 0, shapes[0]))
    for shape in dict.fromkeys(shapes):
        images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        try:
            jax.eval_shape(partial(model.apply, train=False), variables, images)
        except ScopeParamShapeError as error:
            raise UsageError(
                f"config.model is made for images of {shapes[0][:2]} pixels and cannot take those "
                f"of {shape[:2]}: let all transforms end in one size."
            ) from error


def _train(config: ConfigDict, workdir: str) -> None:
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}

    def make_data(config):
        train = input_pipeline.create_train(config, **share)
        return train, input_pipeline.create_eval(config, **share)

    model, stages = _make_model(config), make_stages(config, make_data)
    data = [data for stage in stages for data in (stage.train, stage.evaluation)]
    _check_image_sizes(model, [each.image_shape for each in data])
    refuse_converted(workdir)
    if config.init_from and not steps_in(workdir):
        find_variables(config.init_from)
    distributed.on_first_process(lambda: WorkDir(workdir).settle_config(config))
    reporter = Reporter(
        workdir,
        stages,
        learning_rate_at(stages),
        log_every=config.log_every_steps,
        profile_steps=config.profile,
        enabled=jax.process_index() == 0,
    )
    try:
        if train(config, workdir, model, stages, make_mesh(), reporter):
            reporter.finish()
        else:
            reporter.say(f"Stopped and saved in {workdir}; the same command goes on from here.")
    finally:
        reporter.close()


def _evaluate(config: ConfigDict, workdir: str, checkpoint: str) -> None:
    check_same_model(workdir, config)
    config = stage_configs(config)[-1]
    evaluation = input_pipeline.create_eval(config, jax.process_index(), jax.process_count())
    model = _make_model(config)
    _check_image_sizes(model, [evaluation.image_shape])
    scores = evaluate_checkpoint(config, workdir, checkpoint, model, evaluation, make_mesh())
    if jax.process_index() == 0:
        report_evaluation(workdir, scores, config)


def main(_) -> None:
    logging.set_verbosity(logging.ERROR)  # TFDS and Orbax narrate
    config = _CONFIG.value
    configuration.check(config, default.get_config())
    for stage in stage_configs(config):
        configuration.check(stage, default.get_config())
    distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    train = _MODE.value == "train"
    sizes = ("batch_size", "eval_batch_size") if train else ("eval_batch_size",)
    for stage in stage_configs(config):
        configuration.check_batch(stage, jax.device_count(), sizes)
    if train:
        _train(config, _WORKDIR.value)
    else:
        _evaluate(config, _WORKDIR.value, _CHECKPOINT.value)


def run() -> None:
    """Runs the command line; a refusal is one sentence on stderr and exit status 2."""
    parse = partial(
        configuration.parse_flags, default=default.get_config(), file=str(_DEFAULT_CONFIG)
    )
    try:
        app.run(main, flags_parser=parse)
    except UsageError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
