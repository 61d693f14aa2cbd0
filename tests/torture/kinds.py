"""Every kind of trial by name; `KIND:SEED` names one trial."""

import random
from collections.abc import Callable, Mapping

from tests.torture import numbers, pairs, pictures, runs, settings, weights
from tests.torture.trial import Bench, Trial

KINDS: Mapping[str, Callable[[random.Random, Bench], Trial]] = {
    "kill": runs.kill,
    "stop": runs.stop,
    "damage": runs.damage,
    "disk": runs.full_disk,
    "processes": pairs.processes,
    "config": settings.config,
    "weights": weights.state_dict,
    "images": pictures.folder,
    "layer": numbers.layer,
}


def draw(kind: str, seed: int, bench: Bench) -> Trial:
    """The trial KIND:SEED; what is random about it depends on these two alone."""
    return KINDS[kind](random.Random(f"{kind}:{seed}"), bench)
