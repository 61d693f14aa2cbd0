"""Whatever a config says is taken or refused in one sentence, and soon."""

import random
import time

import pytest

from sop.errors import UsageError
from tests.config.fuzz import draw, take

DRAWS = 400


@pytest.fixture(scope="module", autouse=True)
def warm():
    take([])


@pytest.mark.parametrize("part", range(8))
def test_a_value_is_taken_or_refused_in_one_sentence(part):
    for seed in range(part, DRAWS, 8):
        overrides = draw(random.Random(seed))
        start = time.process_time()
        try:
            take(overrides)
        except UsageError as error:
            assert "\n" not in str(error) and len(str(error)) < 800, (seed, str(error)[:800])
        except Exception as error:
            raise AssertionError(f"draw {seed}, {overrides}") from error
        assert time.process_time() - start < 2, f"draw {seed}, {overrides}, took too long"


def test_draws_are_fixed_and_of_every_kind():
    drawn = [draw(random.Random(seed)) for seed in range(DRAWS)]
    assert drawn == [draw(random.Random(seed)) for seed in range(DRAWS)]
    flags = " ".join(flag for overrides in drawn for flag in overrides)
    for key in ("seed", "stages", "model.backbone", "model.pool", "input.eval_transforms"):
        assert f"--config.{key}=" in flags
