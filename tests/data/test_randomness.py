import numpy as np
import pytest

from sop.data import randomness


def test_one_example_alone_draws_its_row_of_the_epoch():
    for count in (1, 4, 7):
        epoch = randomness.epoch_uniforms(5, 3, 20, count)
        alone = [randomness.uniforms(5, 3, example, count) for example in range(20)]
        np.testing.assert_array_equal(epoch, alone)


def test_seed_epoch_and_example_each_matter():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    drawn = np.array([randomness.uniforms(*key, 8) for key in keys])
    assert len(np.unique(drawn)) == drawn.size


def test_the_order_is_a_permutation_for_each_seed_and_epoch():
    orders = [randomness.order(seed, epoch, 500) for seed in range(3) for epoch in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(500))
    same = [(a == b).mean() for i, a in enumerate(orders) for b in orders[:i]]
    assert max(same) < 0.02


def test_numbers_are_uniform():
    numbers = randomness.epoch_uniforms(0, 0, 20_000, 2)
    assert numbers.min() >= 0 and numbers.max() < 1
    histogram = np.histogram(numbers, bins=10, range=(0, 1))[0]
    np.testing.assert_allclose(histogram, numbers.size / 10, rtol=0.06)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 97, 1000, 1025])
def test_a_shuffle_is_a_permutation_whose_parts_can_be_had_alone(count):
    places = np.arange(count)
    whole = randomness.shuffled(0, 0, count, places)
    assert sorted(whole.tolist()) == places.tolist()
    parts = [randomness.shuffled(0, 0, count, part) for part in np.array_split(places, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_shuffles_differ_by_seed_and_epoch_and_do_not_follow_the_place():
    count = 5000
    places = np.arange(count)
    found = [randomness.shuffled(s, e, count, places) for s in range(3) for e in range(3)]
    for i, one in enumerate(found):
        for other in (places, *found[:i]):
            assert (one == other).sum() < 12  # one on average, if chance alone decides
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.06
        assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.06


def test_of_many_examples_no_order_is_made(monkeypatch):
    monkeypatch.setattr(randomness, "order", None)
    count = 10**10
    places = [(0, 256), (256, 512), (count - 256, count)]
    found = np.concatenate([randomness.ordered(1, 2, count, *each) for each in places])
    assert found.dtype == np.int64 and found.min() >= 0 and found.max() < count
    assert len(np.unique(found)) == found.size
    # Evenly spread: the mean of 768 of them has a deviation of 0.0104.
    assert abs(found.mean() / count - 0.5) < 0.04


def test_few_examples_have_the_order_they_always_had():
    whole = randomness.order(3, 4, 1000)
    np.testing.assert_array_equal(randomness.ordered(3, 4, 1000, 250, 500), whole[250:500])
