"""Twenty float64 steps from the originals' weights end where the originals end."""

import jax
import pytest

from tests.golden import trajectories


@pytest.fixture(autouse=True)
def optimised():
    """Unlike other tests (tests/conftest.py), these compute for longer than they compile."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.parametrize("name", trajectories.CASES)
def test_trains_as_the_original_does(name):
    found = trajectories.errors(name)
    far = {group: error for group, error in found.items() if not error < trajectories.TOLERANCE}
    assert not far
