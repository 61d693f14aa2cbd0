"""The steps of a config as programs over a mesh, before there are data or arrays."""

from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sop.training.optimizer import make_optimizer, make_schedule
from sop.training.state import init_state, init_variables
from sop.training.step import Rows, batch_shapes, data_parallel, on_mesh
from sop.training.task import make_model, make_task

_STEPS_PER_EPOCH = 10_000  # of no weight here: a step is given the number of steps before it


class Program(NamedTuple):
    """A jitted step and the shapes, with shardings, of its arguments; `.lower` and `.compile` it.

    The mesh may be of devices that this machine does not have.
    """

    step: jax.stages.Wrapped
    arguments: tuple[Any, ...]

    def lower(self, **options: Any) -> jax.stages.Lowered:
        """For the platform of the mesh, or `lowering_platforms`."""
        return self.step.trace(*self.arguments).lower(**options)


def training_program(config: ConfigDict, mesh: Mesh, rows: Rows) -> Program:
    """The training step of a stage's config as a run takes it, its state donated.

    Args:
      config: of one stage; its `batch_size` is that of all devices together.
      mesh: see `sop.training.step.make_mesh`.
      rows: of a batch; 'image' is ((H, W, 3), uint8).
    """
    model = make_model(config)
    shapes = _variables(model, config, rows)
    optimizer, schedule = config.optimizer, config.schedule
    rate = make_schedule(schedule, optimizer.learning_rate, config.num_epochs, _STEPS_PER_EPOCH)
    tx = make_optimizer(optimizer, rate, shapes["params"])
    begin = partial(init_state, tx=tx, ema=config.ema_decay is not None)
    train_step = make_task(config, model).train_step(tx)
    options = dict(config.compiler_options)
    step = data_parallel(train_step, mesh, donate=True, options=options)
    state = on_mesh(mesh, jax.eval_shape(begin, shapes))
    return Program(step, (state, batch_shapes(mesh, config.batch_size, rows)))


def evaluation_program(config: ConfigDict, mesh: Mesh, rows: Rows) -> Program:
    """The step of evaluation; arguments as those of `training_program`.

    'image' may be ((V, H, W, 3), uint8), V views.
    """
    model = make_model(config)
    step = data_parallel(make_task(config, model).eval_step(), mesh)
    batch = batch_shapes(mesh, config.eval_batch_size, rows)
    return Program(step, (on_mesh(mesh, _variables(model, config, rows)), batch))


def _variables(model, config, rows):
    shape, _ = rows["image"]
    return jax.eval_shape(partial(init_variables, model, config.seed, shape[-3:]))
