"""Configs that nobody means."""

import random
import time

from sop.errors import UsageError
from tests.config import fuzz
from tests.torture.trial import Bench, Trial

_SECONDS = 20  # of the processor, for what takes a tenth of one


def config(rng: random.Random, bench: Bench) -> Trial:
    """A change of the digits' config is taken, or refused in one sentence, before any work."""
    overrides = fuzz.draw(rng)

    def run() -> None:
        begun = time.process_time()
        try:
            fuzz.take(overrides)
        except UsageError as error:
            assert "\n" not in str(error) and len(str(error)) < 800, str(error)[:800]
        seconds = time.process_time() - begun
        assert seconds < _SECONDS, f"{seconds:.0f} s of work"

    return Trial(" ".join(overrides)[:200], run)
