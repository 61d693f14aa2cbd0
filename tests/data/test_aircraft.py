import cv2
import numpy as np
import pytest

from sop.data import images, prepare, sources
from sop.data.aircraft import FOLDER
from sop.errors import UsageError

VARIANTS = ["707-320", "F/A-18", "Model B200"]
LISTS = {
    "train": [("0034309", "F/A-18"), ("0034958", "Model B200")],
    "val": [("0037511", "707-320")],
    "test": [("0056978", "Model B200"), ("0061581", "F/A-18"), ("0062765", "707-320")],
}


@pytest.fixture
def download(tmp_path):
    data = tmp_path / "tfds" / "downloads" / "manual" / FOLDER / "data"
    (data / "images").mkdir(parents=True)
    (data / "variants.txt").write_text("".join(f"{name}\n" for name in VARIANTS))
    for suffix, examples in LISTS.items():
        lines = "".join(f"{number} {variant}\n" for number, variant in examples)
        (data / f"images_variant_{suffix}.txt").write_text(lines)
        for number, _ in examples:
            grey = np.full((20, 30, 3), int(number) % 256, np.uint8)
            cv2.imwrite(str(data / "images" / f"{number}.jpg"), grey)
    return data


def test_aircraft_is_prepared_from_the_layout_of_its_archive(download, tmp_path):
    data_dir = str(tmp_path / "tfds")
    prepare.prepare("fgvc_aircraft", data_dir)
    splits = {"train": "train", "validation": "val", "test": "test"}
    for split, suffix in splits.items():
        source = sources.open_source("fgvc_aircraft", split, data_dir)
        assert source.class_names == VARIANTS and source.image_size is None
        found = {
            (int(images.decode(data).mean().round()), VARIANTS[label])
            for data, label in (source[index] for index in range(len(source)))
        }
        assert found == {(int(number) % 256, variant) for number, variant in LISTS[suffix]}
    assert len(sources.open_source("fgvc_aircraft", "train+validation", data_dir)) == 3


def test_a_missing_file_is_refused_with_instructions(download, tmp_path):
    next((download / "images").iterdir()).unlink()
    with pytest.raises(UsageError, match=r"missing in .*manual; get them by hand"):
        prepare.prepare("fgvc_aircraft", str(tmp_path / "tfds"))
