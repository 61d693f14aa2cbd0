"""Metrics of a model over a whole evaluation split."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh

from sop.errors import UsageError
from sop.training.step import to_devices


def results(
    eval_step: Callable[[Any, Any], Any],
    mesh: Mesh,
    variables: Any,
    batches: Iterable[dict[str, np.ndarray]],
) -> Iterator[Any]:
    """What the step says of each batch, on the host.

    Args:
      eval_step: mapped by `data_parallel`; its results are the same on all devices.
      variables: replicated over the mesh.
      batches: this process's share, all processes giving equally many.
    """
    waiting = None
    for batch in batches:
        said = eval_step(variables, to_devices(mesh, batch))
        if waiting is not None:
            yield jax.device_get(waiting)  # one behind: the devices never wait for the host
        waiting = said
    if waiting is not None:
        yield jax.device_get(waiting)


def evaluate(
    eval_step: Callable[[Any, Any], dict[str, jax.Array]],
    mesh: Mesh,
    variables: Any,
    batches: Iterable[dict[str, np.ndarray]],
) -> dict[str, float]:
    """Means over every example of classification, each counted once.

    Args:
      eval_step: `data_parallel(make_eval_step(…), mesh)`.
      variables, batches: see `results`.
    Returns:
      'loss' (cross-entropy, nats), 'top1' and 'top5' (accuracies in [0, 1]), 'count'.
    Raises:
      UsageError: there is no example.
    """
    totals = dict.fromkeys(("loss", "top1", "top5", "count"), 0.0)
    for sums in results(eval_step, mesh, variables, batches):
        for name, value in sums.items():
            totals[name] += float(value)
    count = totals.pop("count")
    if not count:
        refuse_no_example()
    return {**{name: total / count for name, total in totals.items()}, "count": int(count)}


def refuse_no_example() -> NoReturn:
    raise UsageError(
        "The evaluation split has no readable example; choose another config.input.eval_split."
    )


def is_finite(metrics: Mapping[str, Any]) -> bool:
    """Whether none of the numbers is NaN or infinite."""
    return all(math.isfinite(each) for each in metrics.values() if isinstance(each, float | int))
