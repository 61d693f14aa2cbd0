"""Mixup and CutMix against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sop.training.mixing import make_mixing, partners

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 12, 8, 3), dtype=np.uint8)
OTHERS = IMAGES[[1, 0, 3, 2, 5, 4]]


def mixed(seed, mixup, cutmix):
    images, share = jax.jit(make_mixing(mixup, cutmix))(jax.random.key(seed), IMAGES)
    return np.asarray(images), float(share)


def test_partners_are_neighbours():
    np.testing.assert_array_equal(partners(jnp.asarray(IMAGES)), OTHERS)
    assert make_mixing(0.0, 0.0) is None


def test_mixup_adds_what_its_share_leaves():
    shares = []
    for seed in range(5):
        images, share = mixed(seed, 0.4, 0.0)
        np.testing.assert_allclose(images, share * IMAGES + (1 - share) * OTHERS, atol=1e-3)
        shares.append(share)
    assert len(set(shares)) == 5 and all(0 <= share <= 1 for share in shares)


def test_cutmix_puts_in_a_rectangle_and_counts_what_is_left():
    shares = []
    for seed in range(8):
        images, share = mixed(seed, 0.0, 1.0)
        own = (images == IMAGES).all(axis=(0, 3))
        put_in = (images == OTHERS).all(axis=(0, 3))
        assert (own ^ put_in).all()
        rows, columns = np.flatnonzero(put_in.any(1)), np.flatnonzero(put_in.any(0))
        assert put_in.sum() == len(rows) * len(columns)  # a rectangle, perhaps of nothing
        if len(rows):
            assert put_in[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert share == pytest.approx(own.mean())
        shares.append(share)
    assert len(set(shares)) > 4


def test_shares_are_those_of_the_beta_distribution():
    keys = jax.random.split(jax.random.key(0), 4000)
    image = np.zeros((2, 4, 4, 3), np.uint8)
    _, shares = jax.vmap(make_mixing(0.4, 0.0), (0, None))(keys, image)
    np.testing.assert_allclose(shares.mean(), 0.5, atol=0.02)
    np.testing.assert_allclose(shares.var(), 1 / (4 * (2 * 0.4 + 1)), atol=0.01)


def test_each_batch_has_one_of_the_two():
    cut = 0
    for seed in range(40):
        images, _ = mixed(seed, 100.0, 1.0)
        cut += bool(((images == IMAGES) | (images == OTHERS)).all())
    assert 10 < cut < 30
