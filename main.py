"""Trains or evaluates an experiment: `main.py --config=configs/NAME.py --workdir=DIR`."""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

import input_pipeline
from configs import default
from sop.errors import UsageError
from sop.models import create_model
from sop.training import config as configuration
from sop.training import distributed
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


def _check_image_size(model, image_shape: tuple[int, int, int]) -> None:
    """A network refuses images that it cannot take when it is traced: before any compilation."""
    jax.eval_shape(partial(init_variables, model, 0, image_shape))


def _train(config: ConfigDict, workdir: str) -> None:
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}

    def make_data(config):
        train = input_pipeline.create_train(config, **share)
        return train, input_pipeline.create_eval(config, **share)

    model, stages = _make_model(config), make_stages(config, make_data)
    for stage in stages:
        _check_image_size(model, stage.train.image_shape)
        _check_image_size(model, stage.evaluation.image_shape)
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
    _check_image_size(model, evaluation.image_shape)
    scores = evaluate_checkpoint(config, workdir, checkpoint, model, evaluation, make_mesh())
    if jax.process_index() == 0:
        report_evaluation(workdir, scores)


def main(_) -> None:
    logging.set_verbosity(logging.ERROR)  # TFDS and Orbax narrate
    config = _CONFIG.value
    configuration.check(config, default.get_config())
    for stage in stage_configs(config):
        configuration.check(stage, default.get_config())
    distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    for stage in stage_configs(config):
        configuration.check_batch(stage, jax.device_count())
    if _MODE.value == "train":
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
