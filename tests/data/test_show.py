import numpy as np
import pytest
from PIL import Image

from sop.data import show
from sop.errors import UsageError


@pytest.fixture
def folder(tmp_path):
    for label, size in (("cat", (20, 30)), ("dog", (200, 100))):
        (tmp_path / "train" / label).mkdir(parents=True)
        for number in range(2):
            image = Image.new("RGB", size, (10, 20, 100 * number))
            image.save(tmp_path / "train" / label / f"{number}.png")
    return tmp_path


def test_a_row_for_each_class(folder, capsys):
    out = folder / "sheet.png"
    show.main([f"folder:{folder}", "--columns=3", f"--out={out}"])
    assert capsys.readouterr().out == f"{out} shows 'train' of folder:{folder}.\n"
    pixels = np.asarray(Image.open(out))
    assert pixels.shape[0] == 2 * 65
    left = pixels.shape[1] - 3 * 65
    assert pixels[0, left].tolist() == [10, 20, 0] and pixels[29, left + 84].tolist() == [
        10,
        20,
        100,
    ]
    assert pixels[31, left].tolist() == [255] * 3  # no cat is larger
    # 200×100 in 64×64 is 64×32.
    assert pixels[65 + 31, left + 63].tolist() == [10, 20, 0]
    assert (pixels[65 + 33 :, left:] == 255).all() and (pixels[:, left + 130 :] == 255).all()


def test_grey_images_make_a_grey_picture_of_the_first_classes(tmp_path):
    out = tmp_path / "digits.png"
    show.main(["digits", "--classes=4", "--columns=2", f"--out={out}", f"--data_dir={tmp_path}"])
    image = Image.open(out)
    assert image.mode == "L" and image.size[1] == 4 * 9


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--columns=0", "--out=a.png"], "--columns: '0' is no whole number"),
        (["--out=a.jpg"], r"--out=a.jpg is no name of a picture"),
        (["--split=val", "--out=a.png"], "no split 'val'"),
        (["--split=broken", "--out=a.png"], r"cat/0.png cannot be shown: "),
    ],
)
def test_bad_flags_and_images_are_one_sentence(folder, flags, message):
    for label in ("cat", "dog"):
        (folder / "broken" / label).mkdir(parents=True)
        (folder / "broken" / label / "0.png").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=message) as refusal:
        show.main([f"folder:{folder}", *flags])
    assert "\n" not in str(refusal.value)
