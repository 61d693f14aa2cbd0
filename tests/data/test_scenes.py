"""Transforms that move boxes and masks with the pixels, composed scenes, and folders of others."""

import json

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from sop.data.annotated import open_annotated
from sop.data.digit_scenes import SIZE, scene
from sop.data.objects import make_objects
from sop.data.scenes import Scene, parse_scenes
from sop.errors import UsageError


def boxed(seed=0, size=(40, 60)):
    """A black scene with two white boxes, whose masks are where they are white."""
    rng = np.random.default_rng(seed)
    image, masks, boxes = np.zeros((*size, 3), np.uint8), [], []
    for left in (3, 33):
        top, width, height = rng.integers(2, 15), rng.integers(8, 22), rng.integers(8, 22)
        box = [left, top, left + width, top + height]
        mask = np.zeros(size, np.uint8)
        mask[box[1] : box[3], box[0] : box[2]] = 1
        image[mask > 0] = 255
        boxes.append(box)
        masks.append(mask)
    return Scene(image, make_objects(boxes, [0, 1]), np.stack(masks), size)


@pytest.mark.parametrize(
    "text",
    [
        "flip",
        "resize(80, 30)",
        "expand(2.0)",
        "min_iou_crop",
        "min_iou_crop((0.1,), 0.5) | flip | resize(64, 64)",
        "resize_pad(120, 64, 16)",
    ],
)
def test_boxes_stay_around_their_pixels(text):
    pipeline = parse_scenes(text, training=True)
    changed = 0
    for seed in range(20):
        before = boxed(seed)
        draws = np.random.default_rng(seed).random(pipeline.num_draws)
        after = pipeline(before, draws)
        changed += after.image.shape != before.image.shape or (after.image != before.image).any()
        for box, mask in zip(after.objects.boxes, after.masks, strict=True):
            rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
            tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(box, tight, atol=1)  # of a resized mask
        again = pipeline(boxed(seed), draws)
        np.testing.assert_array_equal(again.image, after.image)
    assert changed > 5


def test_photometric_leaves_boxes_alone():
    pipeline = parse_scenes("photometric", training=True)
    before = boxed()
    before.image[:] = 100
    images = [pipeline(before, np.random.default_rng(i).random(12)).image for i in range(20)]
    assert len({image.tobytes() for image in images}) > 5
    assert all(image.dtype == np.uint8 for image in images)


def test_a_scene_without_objects_goes_through():
    empty = Scene(np.zeros((20, 20, 3), np.uint8), make_objects([], []), None, (20, 20))
    pipeline = parse_scenes("expand | min_iou_crop | flip | resize(8, 8)", training=True)
    for seed in range(5):
        after = pipeline(empty, np.random.default_rng(seed).random(pipeline.num_draws))
        assert len(after.objects) == 0 and after.image.shape == (8, 8, 3)


def test_messages_call_transforms_as_texts_do():
    with pytest.raises(UsageError, match="eval_transforms: min_iou_crop is random"):
        parse_scenes("min_iou_crop | resize(8, 8)", training=False)


def test_sizes_must_be_known():
    with pytest.raises(UsageError, match="resize"):
        parse_scenes("flip", training=True).sizes()
    assert parse_scenes("resize_pad", training=False).sizes() == [(800, 1344), (1344, 800)]


def test_digits_in_scenes():
    """Boxes are tight and do not overlap; a scene is the same whenever it is made."""
    digits = load_digits().images / 16
    counts = []
    for number in range(20):
        image, instances, used = scene(digits, "train", number)
        assert image.shape == (SIZE, SIZE)
        assert set(np.unique(instances)) == set(range(len(used) + 1))
        counts.append(len(used))
    assert min(counts) >= 1 and max(counts) > 3
    np.testing.assert_array_equal(scene(digits, "train", 19)[0], image)
    assert (scene(digits, "test", 19)[0] != image).any()


@pytest.fixture
def coco(tmp_path):
    """A folder in COCO's format with two images, and its annotations to change."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / "train" / name), np.zeros((30, 40, 3), np.uint8))
    box = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [5, 5, 10, 20], "area": 200}
    box |= {"iscrowd": 0, "segmentation": [[5, 5, 15, 5, 15, 25, 5, 25]]}
    whole = {
        "images": [
            {"id": i, "file_name": name, "height": 30, "width": 40}
            for i, name in ((1, "a.png"), (2, "b.png"))
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 7, "name": "cat"}],
        "annotations": [box],
    }

    def write():
        file = tmp_path / "annotations" / "instances_train.json"
        file.write_text(json.dumps(whole))
        return open_annotated(f"coco:{tmp_path}", "train")

    return whole, write


def test_a_folder_in_cocos_format(coco):
    _, write = coco
    source = write()
    assert source.class_names == ["cat", "dog"] and len(source) == 2 and source.has_masks
    _, objects = source[0]
    assert objects.boxes.tolist() == [[5, 5, 15, 25]] and objects.labels.tolist() == [0]
    assert len(source[1][1]) == 0
    assert source.truth(1)[0] == (30, 40)


def test_boxes_that_cannot_be_are_counted(coco, capsys):
    whole, write = coco
    [first] = whole["annotations"]
    for number, box in enumerate([[-9, 2, 20, 9], [50, 2, 9, 9], [3, 3, 0, 9]], 2):
        whole["annotations"].append({**first, "id": number, "bbox": box})
    source = write()
    assert source[0][1].boxes.tolist() == [[5, 5, 15, 25], [0, 2, 11, 11]]
    said = capsys.readouterr().err
    assert "2 boxes without area inside the image, left out" in said
    assert "1 boxes beyond the edge of the image, cut off" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda whole: whole["annotations"][0].update(category_id=3), "category 3"),
        (lambda whole: whole["annotations"][0].update(image_id=9), "image 9"),
        (lambda whole: whole["annotations"][0].update(bbox=[0, 0, float("nan"), 3]), "finite"),
        (lambda whole: whole["annotations"][0].update(bbox=[0, 0]), "not in COCO's format"),
        (lambda whole: whole.pop("categories"), "not in COCO's format"),
    ],
)
def test_annotations_that_cannot_be_meant(coco, change, message):
    whole, write = coco
    change(whole)
    with pytest.raises(UsageError, match=message):
        write()


def test_what_is_missing_is_named(tmp_path, coco):
    _, write = coco
    write()
    with pytest.raises(UsageError, match="of the splits train"):
        open_annotated(f"coco:{tmp_path}", "val")
    with pytest.raises(UsageError, match="does not exist"):
        open_annotated(f"coco:{tmp_path / 'no'}", "val")
    with pytest.raises(UsageError, match=r"'train\[:80%\]' is a part of one.*--validation=TRAIN"):
        open_annotated(f"coco:{tmp_path}", "train[:80%]")


VOC = """<annotation><size><height>30</height><width>40</width></size>
<object><name>cat</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>2</ymin>
<xmax>10</xmax><ymax>20</ymax></bndbox></object></annotation>"""


def test_a_folder_in_vocs_format(tmp_path):
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "JPEGImages" / "x.jpg"), np.zeros((30, 40, 3), np.uint8))
    (tmp_path / "Annotations" / "x.xml").write_text(VOC)
    (tmp_path / "ImageSets" / "Main" / "trainval.txt").write_text("x\n")
    source = open_annotated(f"voc:{tmp_path}", "trainval")
    size, objects = source.truth(0)
    # Its corners count from 1, and the last pixel is inside.
    assert size == (30, 40) and objects.boxes.tolist() == [[0, 1, 10, 20]]
    assert objects.difficult.tolist() == [True]
    assert source.class_names[objects.labels[0]] == "cat"
    (tmp_path / "Annotations" / "x.xml").write_text(VOC.replace("cat", "unicorn"))
    with pytest.raises(UsageError, match=r"unicorn.*classes\.txt"):
        open_annotated(f"voc:{tmp_path}", "trainval")
    with pytest.raises(UsageError, match="trainval"):
        open_annotated(f"voc:{tmp_path}", "trainvla")
