"""Average precision of hand-made detections, by COCO's rules and by VOC's."""

import numpy as np
import pytest

from sop.data.masks import decode_mask, encode_mask, paste, read_segmentation
from sop.data.objects import make_objects
from sop.detection.metric import Found, average_precision, voc_average_precision

SIZE = (100, 100)
LEFT, RIGHT = [10, 10, 50, 50], [60, 10, 90, 50]


def truths(*objects, **options):
    """Image 0, 1, … → its objects, each (box, label)."""
    return {
        i: (SIZE, make_objects([box for box, _ in each], [k for _, k in each], **options))
        for i, each in enumerate(objects)
    }


def found(*detections):
    """Image 0, 1, … → what was found, each (box, label, score)."""
    return {
        i: Found(
            np.array([box for box, *_ in each], float).reshape(-1, 4),
            np.array([score for *_, score in each], float),
            np.array([label for _, label, _ in each], int),
        )
        for i, each in enumerate(detections)
    }


def test_what_is_right_is_one():
    scores = average_precision(
        truths([(LEFT, 0), (RIGHT, 1)]), found([(LEFT, 0, 0.9), (RIGHT, 1, 0.8)]), ["a", "b"]
    )
    for name in ("AP", "AP50", "AP75", "AR100", "VOC_AP", "VOC_AP11"):
        assert scores[name] == pytest.approx(1)
    assert scores["AP_small"] is None  # no object is
    assert scores["per_class"]["b"] == pytest.approx({"AP": 1, "AP50": 1, "VOC_AP": 1})
    assert scores["count"] == 1


def test_a_box_that_is_nearly_right():
    """IoU 0.8: seven of COCO's ten thresholds, 0.5 to 0.8, are met."""
    near = [10, 10, 50, 42]
    scores = average_precision(truths([(LEFT, 0)]), found([(near, 0, 0.9)]), ["a"])
    assert scores["AP50"] == scores["AP75"] == pytest.approx(1)
    assert scores["AP"] == pytest.approx(0.7)


def test_nothing_found_and_nothing_there():
    scores = average_precision(truths([(LEFT, 0)], []), found([], []), ["a", "b"])
    assert scores["AP"] == scores["VOC_AP"] == 0
    assert scores["per_class"]["b"]["AP"] is None


def test_a_second_detection_of_an_object_is_wrong():
    """Precision 1 up to recall ½, then 2/3 at recall 1."""
    objects = truths([(LEFT, 0), (RIGHT, 0)])
    said = found([(LEFT, 0, 0.9), (LEFT, 0, 0.8), (RIGHT, 0, 0.7)])
    assert voc_average_precision(objects, said, 1) == pytest.approx([(1 + 2 / 3) / 2])
    eleven = voc_average_precision(objects, said, 1, eleven_points=True)
    assert eleven == pytest.approx([(6 + 5 * 2 / 3) / 11])


@pytest.mark.parametrize("kind", ["difficult", "crowd"])
def test_what_does_not_count(kind):
    """Neither is it missed, nor is finding it wrong."""
    objects = truths([(LEFT, 0), (RIGHT, 0)], **{kind: [False, True]})
    for said in ([(LEFT, 0, 0.9)], [(RIGHT, 0, 0.95), (LEFT, 0, 0.9)]):
        scores = average_precision(objects, found(said), ["a"])
        assert scores["AP50"] == scores["VOC_AP"] == pytest.approx(1)


def test_masks():
    mask = np.zeros(SIZE, np.uint8)
    mask[10:50, 10:30] = 1
    objects = {0: (SIZE, make_objects([LEFT], [0], masks=[encode_mask(mask)], areas=[800]))}
    wrong, right = np.ones((28, 28)), np.zeros((28, 28))
    right[:, :14] = 1
    for shares, ap in ((wrong, 0.1), (right, 1)):  # half of the box: IoU ½ and no more
        said = found([(LEFT, 0, 0.9)])[0]
        said = Found(said.boxes, said.scores, said.labels, paste(shares[None], said.boxes, SIZE))
        scores = average_precision(objects, {0: said}, ["a"])
        assert scores["mask_AP"] == pytest.approx(ap)
        assert scores["AP"] == pytest.approx(1)


@pytest.mark.parametrize("form", ["polygons", "numbers", "text"])
def test_segmentations_of_every_kind(form):
    mask = np.zeros((6, 8), np.uint8)
    mask[1:4, 2:5] = 1
    runs = encode_mask(mask)
    given = {
        "polygons": [[2, 1, 5, 1, 5, 4, 2, 4]],
        "numbers": {"size": [6, 8], "counts": [13, 3, 3, 3, 3, 3, 20]},
        "text": {"size": [6, 8], "counts": runs["counts"].decode()},
    }[form]
    np.testing.assert_array_equal(decode_mask(read_segmentation(given, 6, 8)), mask)


def test_a_segmentation_of_no_kind():
    with pytest.raises(ValueError, match="neither polygons nor run lengths"):
        read_segmentation([[1, 2]], 6, 8)
