"""A short fixed draw of `python -m tests.torture`; the whole goes on for as long as one likes."""

import pytest

from tests.torture.kinds import draw
from tests.torture.trial import Bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("torture"))


MINUTES = (
    *(("damage", 1), ("damage", 2), ("disk", 0), ("stop", 0), ("kill", 0)),
    *(("processes", 0), ("processes", 1)),
)


# What the first ones found when they were written: a NaN hidden, a pipe that was waited for, …
@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        *(("layer", seed) for seed in (1000007, 1000010, 1000110, 1000170, 1000220)),
        *(("config", seed) for seed in range(4)),
        *(("weights", seed) for seed in range(8)),
        *(("images", seed) for seed in range(12)),
        ("damage", 0),
        *(pytest.param(*each, marks=pytest.mark.heavy) for each in MINUTES),
    ],
)
def test_survives(bench, kind, seed):
    draw(kind, seed, bench).run()
