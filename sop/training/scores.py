"""How the scores of an evaluation are ranked, compared and said, whatever the task."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Measure(NamedTuple):
    """A share in [0, 1] that an evaluation finds.

    Attributes:
      name: among the scores.
      label: for a reader.
      compared: whether methods are compared by it.
    """

    name: str
    label: str
    compared: bool = True


Measures = tuple[Measure, ...]

# Of each task; the first says which checkpoint, and which method, is the best.
CLASSIFICATION: Measures = (Measure("top1", "top-1"), Measure("top5", "top-5", compared=False))
DETECTION: Measures = (
    Measure("AP", "AP"),
    Measure("AP50", "AP50"),
    Measure("mask_AP", "mask AP"),  # of those that find masks
)


def measures(scores: Mapping[str, Any]) -> Measures:
    """Those of the task that has such scores.

    Raises:
      ValueError: none has.
    """
    for task in (CLASSIFICATION, DETECTION):
        if scores.get(task[0].name) is not None:
            return task
    raise ValueError(f"These are no scores: {sorted(scores)}.")


def best_score(scores: Mapping[str, Any]) -> float:
    """The number that is highest in the best checkpoint."""
    return scores[measures(scores)[0].name]


def rank(scores: Mapping[str, Any]) -> tuple[float, float]:
    """What is highest in the best of several runs: of equal scores the smaller loss, if any."""
    return best_score(scores), -(scores.get("loss") or 0.0)


def describe_best(scores: Mapping[str, Any]) -> str:
    """'top-1 97.22%'"""
    return f"{measures(scores)[0].label} {best_score(scores):.2%}"


def describe(scores: Mapping[str, Any]) -> str:
    """'loss …, top-1 … %, …' of shares in [0, 1], and the same of an average."""
    said = [f"loss {scores['loss']:.4f}"] if "loss" in scores else []
    said += [
        f"{each.label} {scores[each.name]:.2%}"
        for each in (*CLASSIFICATION, *DETECTION)
        if scores.get(each.name) is not None
    ]
    average = {name.removeprefix("ema_"): scores[name] for name in scores if name[:4] == "ema_"}
    return ", ".join(said) + (f" (average: {describe(average)})" if average else "")
