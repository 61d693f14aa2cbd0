"""Images of digits as users have them, and a run that knows them."""

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

import sop


@pytest.fixture(scope="session")
def run(digits_run):
    return sop.load(digits_run)


@pytest.fixture(scope="session")
def digits():
    """(uint8 [20, 8, 8, 3], labels): two of each digit."""
    found = load_digits()
    images = (found.images[:20] * 255 / 16).astype(np.uint8)
    return np.repeat(images[..., None], 3, axis=-1), found.target[:20]


@pytest.fixture(scope="session")
def photos(tmp_path_factory, digits):
    """photos/CLASS/NUMBER.png, and beside them a text file that is called .jpg."""
    folder = tmp_path_factory.mktemp("using") / "photos"
    for number, (image, label) in enumerate(zip(*digits, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / str(label) / f"{number:02}.png"), image)
    (folder / "3" / "text.jpg").write_text("no picture")
    return folder
