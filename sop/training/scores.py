"""How the scores of an evaluation are ranked and said, whatever the task."""

from collections.abc import Mapping
from typing import Any

# Of each task the score by which a checkpoint is the best, and what it is called.
_BEST = {"top1": "top-1", "AP": "AP"}
_SHARES = {"top1": "top-1", "top5": "top-5", "AP": "AP", "AP50": "AP50", "mask_AP": "mask AP"}


def best_score(scores: Mapping[str, Any]) -> float:
    """The number that is highest in the best checkpoint."""
    return scores[_best_name(scores)]


def describe_best(scores: Mapping[str, Any]) -> str:
    """'top-1 97.22%'"""
    name = _best_name(scores)
    return f"{_BEST[name]} {scores[name]:.2%}"


def _best_name(scores: Mapping[str, Any]) -> str:
    return next(name for name in _BEST if name in scores)


def describe(scores: Mapping[str, Any]) -> str:
    """'loss …, top-1 … %, …' of shares in [0, 1], and the same of an average."""
    said = [f"loss {scores['loss']:.4f}"] if "loss" in scores else []
    said += [f"{label} {scores[key]:.2%}" for key, label in _SHARES.items() if key in scores]
    average = {name.removeprefix("ema_"): scores[name] for name in scores if name[:4] == "ema_"}
    return ", ".join(said) + (f" (average: {describe(average)})" if average else "")
