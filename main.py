"""Trains or evaluates an experiment: `main.py --config=configs/NAME.py --workdir=DIR`."""

import sys
from functools import partial

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
from sop.training.reporting import Reporter
from sop.training.stages import Stage, make_stages, stage_configs
from sop.training.state import init_variables
from sop.training.step import AXIS, make_mesh
from sop.training.workdir import WorkDir, check_same_model

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    "configs/digits.py",
    "The experiment; --config.KEY=VALUE changes a key of it.",
    lock_config=False,
    accept_new_attributes=True,  # options of config.model.attention and the like
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "What to do.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "To evaluate: 'best', 'latest' or a step.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of this run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def _make_data(config: ConfigDict):
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    return input_pipeline.create_train(config, **share), input_pipeline.create_eval(config, **share)


def _prepare(config: ConfigDict):
    """The model and the stages of its training, everything checked that costs no compilation."""
    axis_name = AXIS if config.sync_batch_norm else None
    model = create_model(config.model, dtype=jnp.dtype(config.dtype), axis_name=axis_name)
    stages = make_stages(config, _make_data)
    jax.eval_shape(partial(init_variables, model, config.seed, stages[0].train.image_shape))
    return model, stages


def _train(config: ConfigDict, workdir: str, model, stages: list[Stage]) -> None:
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


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # TFDS and Orbax narrate at INFO
    config = _CONFIG.value
    configuration.check(config, default.get_config())
    for stage in stage_configs(config):
        configuration.check(stage, default.get_config())
    distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    for stage in stage_configs(config):
        configuration.check_batch(stage, jax.device_count())
    if _MODE.value == "eval":
        check_same_model(_WORKDIR.value, config)
    model, stages = _prepare(config)
    if _MODE.value == "train":
        workdir = None

        def open_workdir():
            nonlocal workdir
            workdir = WorkDir(_WORKDIR.value)
            workdir.settle_config(config)

        distributed.on_first_process(open_workdir)
        _train(config, _WORKDIR.value, model, stages)
    else:
        scores = evaluate_checkpoint(
            config, _WORKDIR.value, _CHECKPOINT.value, model, stages, make_mesh()
        )
        print(scores)


def _run() -> None:
    try:
        app.run(main, flags_parser=partial(configuration.parse_flags, default=default.get_config()))
    except UsageError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    _run()
