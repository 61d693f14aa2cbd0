import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from sop.data import images, prepare, sources, typefaces
from sop.errors import UsageError

FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")
SPLITS = tuple(typefaces.COUNTS)


@pytest.fixture
def few(monkeypatch):
    """Few scraps of each face, which are the first of the whole set."""
    monkeypatch.setattr(typefaces, "COUNTS", {"train": 3, "validation": 1, "test": 2})


def test_typefaces_are_prepared_on_first_use_with_faces_in_turn(few, tmp_path):
    for split, count in typefaces.COUNTS.items():
        source = sources.open_source("typefaces", split, str(tmp_path))
        assert len(source) == 22 * count and source.image_size == (32, 32)
        assert source.class_names == list(typefaces.FACES)
        for index in range(len(source)):
            data, label = source[index]
            assert label == index % 22
            if index % 7 == 0:
                font = FONTS / f"{typefaces.FACES[label]}.ttf"
                expected = typefaces.scrap(font, split, index // 22)
                np.testing.assert_array_equal(images.decode(data)[..., 0], expected)
    half = sources.open_source("typefaces", "train[:67%]", str(tmp_path))
    assert np.bincount([half[index][1] for index in range(len(half))]).tolist() == [2] * 22


def test_faces_differ_and_have_the_grey_values_in_common():
    scraps = np.stack(
        [typefaces.scrap(FONTS / f"{face}.ttf", "test", 3) for face in typefaces.FACES]
    )
    assert len(np.unique(scraps, axis=0)) == 22
    dark, light = scraps.min((1, 2)), scraps.max((1, 2))
    assert np.ptp(light) == 0 and np.ptp(dark) < 40 and (light - dark).min() > 40


def test_splits_share_no_word_and_no_number():
    words = {split: {word.lower() for word in typefaces._words(split)} for split in SPLITS}
    assert all(len(each) == 500 for each in words.values())
    assert len(set.union(*words.values())) == 1500
    rng = np.random.default_rng(0)
    drawn = [{typefaces._draw(rng, split, 20, 41) for _ in range(300)} for split in range(3)]
    assert sorted(number for each in drawn for number in each) == list(range(20, 41))


def test_a_folder_of_fonts_of_ones_own(few, tmp_path, monkeypatch):
    fonts = tmp_path / "fonts"
    (fonts / "more").mkdir(parents=True)
    shutil.copy(FONTS / "cmr10.ttf", fonts / "roman.ttf")
    shutil.copy(FONTS / "STIXSizOneSymReg.ttf", fonts)  # no letters
    (fonts / "broken.otf").write_bytes(b"no font")
    (fonts / "read.me").write_text("no font")
    data_dir = str(tmp_path / "tfds")
    with pytest.raises(UsageError, match=r"prepare typefaces/own --data_dir"):
        sources.open_source("typefaces/own", "train", data_dir)
    with pytest.raises(UsageError, match=r"missing in /no/such.*put \.ttf"):
        prepare.prepare("typefaces/own", data_dir, "/no/such")
    with pytest.raises(UsageError, match=r"fonts holds 1 fonts .* needs two"):
        prepare.prepare("typefaces/own", data_dir, str(fonts))
    shutil.copy(FONTS / "cmtt10.ttf", fonts / "more")
    prepare.prepare("typefaces/own", data_dir, str(fonts))
    source = sources.open_source("typefaces/own", "test", data_dir)
    assert source.class_names == ["more/cmtt10.ttf", "roman.ttf"] and len(source) == 4
    expected = typefaces.scrap(FONTS / "cmr10.ttf", "test", 1)
    np.testing.assert_array_equal(images.decode(source[3][0])[..., 0], expected)
