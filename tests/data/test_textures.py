import sys
import types

import numpy as np
import pytest
from PIL import Image

from sop.data import images, prepare, sources, textures
from sop.errors import UsageError

SHARES = {"train": (512, 512 * 256), "validation": (256, 256 * 256), "test": (256, 256 * 256)}


def photograph(seed=0, side=512):
    return np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)


@pytest.fixture
def skimage(monkeypatch):
    """As much of scikit-image as is asked for; the package need not be there."""
    data = types.ModuleType("skimage.data")
    for seed, name in enumerate(textures.PHOTOGRAPHS):
        setattr(data, name, lambda seed=seed: photograph(seed))
    monkeypatch.setitem(sys.modules, "skimage", types.ModuleType("skimage"))
    monkeypatch.setitem(sys.modules, "skimage.data", data)


def test_textures_are_crops_of_the_photographs_in_turn(skimage, tmp_path):
    for split, (count, _) in SHARES.items():
        source = sources.open_source("textures", split, str(tmp_path))
        assert len(source) == 3 * count and source.image_size == (32, 32)
        assert source.class_names == ["brick", "grass", "gravel"]
        expected = list(textures.crops(np.stack([photograph(2)] * 3, -1), split))
        for index in (2, 5, len(source) - 1):
            data, label = source[index]
            assert label == 2
            np.testing.assert_array_equal(images.decode(data), expected[index // 3])
    assert len({source[index][1] for index in range(3)}) == 3


@pytest.mark.parametrize("shape", [(512, 512), (128, 131), (300, 129)])
def test_splits_share_no_pixel(shape):
    numbered = np.arange(np.prod(shape)).reshape(*shape, 1)
    pixels = {split: list(textures.crops(numbered, split)) for split in SHARES}
    assert all(crop.shape == (32, 32, 1) for crops in pixels.values() for crop in crops)
    assert {split: len(crops) for split, crops in pixels.items()} == {
        split: count for split, (count, _) in SHARES.items()
    }
    sets = [set(np.unique(crops)) for crops in pixels.values()]
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]
    if shape == (512, 512):  # nothing is left out, and no crop comes twice
        assert [len(each) for each in sets] == [pixel for _, pixel in SHARES.values()]
        assert all(len({crop[0, 0, 0] for crop in each}) == len(each) for each in pixels.values())


def test_a_folder_of_photographs_of_ones_own(tmp_path):
    folder, data_dir = tmp_path / "photographs", str(tmp_path / "tfds")
    folder.mkdir()
    Image.fromarray(photograph(0, 200)).save(folder / "bark.png")
    (folder / "notes.txt").write_text("no photograph")
    with pytest.raises(UsageError, match=r"photographs holds 1 photographs, .* needs two"):
        prepare.prepare("textures/own", data_dir, str(folder))
    Image.fromarray(photograph(1, 100)).save(folder / "wool.png")
    with pytest.raises(UsageError, match=r"wool.png has 100×100 pixels: .* 128×128"):
        prepare.prepare("textures/own", data_dir, str(folder))
    (folder / "wool.png").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"wool.png cannot be read .*: remove it"):
        prepare.prepare("textures/own", data_dir, str(folder))
    Image.fromarray(photograph(1, 150)).save(folder / "wool.png")
    prepare.prepare("textures/own", data_dir, str(folder))
    assert sources.open_source("textures/own", "test", data_dir).class_names == [
        "bark.png",
        "wool.png",
    ]


def test_the_package_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(UsageError, match=r"^Preparing 'textures' needs skimage.*'\.\[sets\]'`\.$"):
        sources.open_source("textures", "train", str(tmp_path))


def test_the_package_carries_the_photographs():
    data = pytest.importorskip("skimage.data")
    for name in textures.PHOTOGRAPHS:
        assert getattr(data, name)().shape == (512, 512)
        assert getattr(data, name)().dtype == np.uint8
