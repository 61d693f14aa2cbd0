"""Training steps of several configs, timed in turns in one process: what differs is the method.

A machine's pace drifts, so a step of each follows a step of each; medians are compared.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from sop.config import stage_configs
from sop.progress import shown
from sop.training.memory import needed_bytes
from sop.training.optimizer import make_optimizer, make_schedule
from sop.training.state import init_state, init_variables
from sop.training.step import (
    data_parallel,
    make_mesh,
    replicated,
    to_devices,
)
from sop.training.task import make_model, make_task


class Speed(NamedTuple):
    """What a training step takes.

    Attributes:
      images_per_second: of training, over all devices, without the input pipeline.
      memory: bytes of a device that the compiled step needs; None where the compiler does not say.
    """

    images_per_second: float
    memory: int | None


def measure(configs: Mapping[str, tuple[ConfigDict, int]], turns: int = 7) -> dict[str, Speed]:
    """Times the training step of each config on noise, in turns.

    Args:
      configs: name → (config of a run, height and width of its images).
      turns: steps of each that are timed; the median counts.
    """
    parts = ((1, item) for item in configs.items())
    steps = {
        name: _step(config, size)
        for name, (config, size) in shown(parts, len(configs), "compiling", "network")
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, (run, _, _) in steps.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: Speed(images / median(seconds[name]), memory)
        for name, (_, images, memory) in steps.items()
    }


def _step(config: ConfigDict, size: int) -> tuple[Callable[[], None], int, int | None]:
    """What takes a step, images in it, and bytes that it needs."""
    last, mesh = stage_configs(config)[-1], make_mesh()
    model = make_model(last)
    variables = init_variables(model, 0, (size, size, 3))
    rate = last.optimizer.learning_rate
    schedule = make_schedule(last.schedule, rate, last.num_epochs, 1000)
    tx = make_optimizer(last.optimizer, schedule, variables["params"])
    task = make_task(last, model)
    step = data_parallel(task.train_step(tx), mesh)
    on_devices = to_devices(mesh, task.noise(np.random.default_rng(0), (size, size)))
    state = jax.device_put(init_state(variables, tx), replicated(mesh))
    compiled = step.lower(state, on_devices).compile()

    def run() -> None:
        jax.block_until_ready(compiled(state, on_devices))

    run()
    return run, last.batch_size, needed_bytes(compiled)
