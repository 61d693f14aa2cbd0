"""Means over seeds, how well they are known, and differences between methods.

Runs with one seed share the order of examples and what is drawn for them, so a difference is taken
seed by seed: what a seed adds to both methods is not in it.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.stats import t as student

from sop.errors import UsageError

LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean with its interval, mean ± half.

    Attributes:
      mean: of the values.
      half: half the width of Student's interval at `LEVEL`; None of a single value.
      size: how many values.
    """

    mean: float
    half: float | None
    size: int

    @property
    def sign(self) -> int:
        """1 or −1 where the whole interval is above or below 0, else 0."""
        if self.half is None or abs(self.mean) <= self.half:
            return 0
        return 1 if self.mean > 0 else -1


def estimate(values: Sequence[float]) -> Estimate:
    """x̄ ± t s/√n, with t the (1 + LEVEL)/2 quantile of Student's distribution of n − 1 degrees.

    It supposes that the values are drawn independently from a normal distribution.

    Args:
      values: at least one.
    >>> estimate([1.0, 2.0, 3.0])  # 4.303 · 1/√3
    Estimate(mean=2.0, half=2.484137711..., size=3)
    """
    size = len(values)
    if size < 2:
        return Estimate(fmean(values), None, size)
    quantile = float(student.ppf((1 + LEVEL) / 2, size - 1))
    return Estimate(fmean(values), quantile * stdev(values) / math.sqrt(size), size)


def difference(values: Mapping[int, float], base: Mapping[int, float]) -> Estimate | None:
    """The estimate of value − base over the seeds that both have; None where there is none."""
    seeds = sorted(values.keys() & base.keys())
    return estimate([values[seed] - base[seed] for seed in seeds]) if seeds else None


def by_seed(pairs: Sequence[tuple[int, float]], what: str) -> dict[int, float]:
    """Seed → value.

    Raises:
      UsageError: a seed is there twice.
    """
    found: dict[int, float] = {}
    for seed, value in pairs:
        if seed in found:
            raise UsageError(f"There are two runs of '{what}' with seed {seed}: remove one.")
        found[seed] = value
    return found
