import numpy as np
import pytest
from sklearn.datasets import load_digits

from sop.data import images, sources


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


def read(name, split, data_dir):
    source = sources.open_source(name, split, data_dir)
    examples = [source[index] for index in range(len(source))]
    pixels = np.stack([images.decode(data) for data, _ in examples])
    return source, pixels, np.array([label for _, label in examples])


def test_every_digit_is_in_one_split(data_dir):
    splits = {split: read("digits", split, data_dir) for split in ("train", "test")}
    assert {split: len(source) for split, (source, _, _) in splits.items()} == {
        "train": 1437,
        "test": 360,
    }
    source, _, labels = splits["test"]
    assert source.class_names == list("0123456789") and source.image_size == (8, 8)
    proportional = np.bincount(load_digits().target) * (360 / 1797)
    assert np.abs(np.bincount(labels) - proportional).max() < 1
    everything = np.concatenate([pixels for _, pixels, _ in splits.values()])
    assert (everything[..., :1] == everything).all()
    original = np.rint(load_digits().images * 255 / 16).astype(np.uint8)

    def rows(array):
        return np.sort(array.reshape(len(array), -1).astype("S3").view("S192")[:, 0])

    np.testing.assert_array_equal(rows(everything[..., 0]), rows(original))
    assert source.describe(3) == "record 3 of digits/all/1.0.0, split 'test'"


def test_halves_are_the_same_split_with_labels_from_zero(data_dir):
    for split in ("train", "test"):
        _, pixels, labels = read("digits", split, data_dir)
        for name, first in [("digits/0-4", 0), ("digits/5-9", 5)]:
            source, half, half_labels = read(name, split, data_dir)
            assert source.class_names == [str(digit) for digit in range(first, first + 5)]
            for label in range(5):
                mine = half[half_labels == label].reshape(-1, 192)
                expected = pixels[labels == label + first].reshape(-1, 192)
                np.testing.assert_array_equal(np.unique(mine, axis=0), np.unique(expected, axis=0))
