"""Twenty float64 steps from the originals' weights end where the originals end."""

import pytest

from tests.golden import trajectories


@pytest.mark.parametrize("name", trajectories.CASES)
def test_trains_as_the_original_does(name):
    found = trajectories.errors(name)
    far = {group: error for group, error in found.items() if not error < trajectories.TOLERANCE}
    assert not far
