import jax.numpy as jnp
import numpy as np
import pytest

from sop.config import get_config
from sop.data.normalization import STATISTICS, make_normalize, normalize
from sop.errors import UsageError


@pytest.mark.parametrize("name", STATISTICS)
def test_normalize_is_affine_with_the_named_statistics(name):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    mean, deviation = map(np.array, STATISTICS[name])
    np.testing.assert_allclose(
        normalize(images, name), (images / 255 - mean) / deviation, atol=1e-5
    )


def test_mean_and_deviation_may_be_given():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    mean, deviation = (0.5, 0.25, 0.125), (0.5, 1.0, 2.0)
    for given, by_name in zip(({"mean": mean}, {"deviation": deviation}), (1, 0), strict=True):
        statistics = [mean, deviation]
        statistics[by_name] = STATISTICS["cifar10"][by_name]
        expected = (images / 255 - statistics[0]) / statistics[1]
        np.testing.assert_allclose(normalize(images, "cifar10", **given), expected, atol=1e-5)


def test_a_run_normalizes_as_its_config_says():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    config = get_config()
    config.dtype, config.input.normalization = "bfloat16", "cifar10"
    config.input.mean, config.input.deviation = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    expected = normalize(images, "none", jnp.bfloat16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    np.testing.assert_array_equal(make_normalize(config)(images), expected)


def test_normalize_gives_the_compute_type():
    assert (
        normalize(jnp.zeros((1, 2, 2, 3), jnp.uint8), "cifar10", jnp.bfloat16).dtype == jnp.bfloat16
    )


def test_unknown_statistics_are_refused():
    with pytest.raises(UsageError, match=r"'imagnet' is unknown.*imagenet"):
        normalize(jnp.zeros((1, 2, 2, 3), jnp.uint8), "imagnet")
