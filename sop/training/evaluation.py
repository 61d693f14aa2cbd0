"""Metrics of a model over a whole evaluation split."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sop.errors import UsageError
from sop.training.step import to_devices


def evaluate(
    eval_step: Callable[[Any, Any], dict[str, jax.Array]],
    mesh: Mesh,
    variables: Any,
    batches: Iterable[dict[str, np.ndarray]],
) -> dict[str, float]:
    """Means over every example, each counted once.

    Args:
      eval_step: `data_parallel(make_eval_step(…), mesh)`.
      variables: replicated over the mesh.
      batches: this process's share, all processes giving equally many.
    Returns:
      'loss' (cross-entropy, nats), 'top1' and 'top5' (accuracies in [0, 1]), 'count'.
    Raises:
      UsageError: there is no example.
    """
    totals = dict.fromkeys(("loss", "top1", "top5", "count"), 0.0)
    waiting = None

    def settle(sums):
        for name, value in jax.device_get(sums).items():
            totals[name] += float(value)

    for batch in batches:
        sums = eval_step(variables, to_devices(mesh, batch))
        if waiting is not None:
            settle(waiting)  # one batch behind, so that the devices never wait for the host
        waiting = sums
    if waiting is not None:
        settle(waiting)
    count = totals.pop("count")
    if not count:
        raise UsageError(
            "The evaluation split has no readable example; choose another config.input.eval_split."
        )
    return {**{name: total / count for name, total in totals.items()}, "count": int(count)}


def is_finite(metrics: dict[str, float]) -> bool:
    """Whether no metric is NaN or infinite."""
    return all(math.isfinite(value) for value in metrics.values())
