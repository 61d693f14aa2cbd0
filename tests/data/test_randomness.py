import numpy as np

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
