"""Average precision of detections, by COCO's rules and by VOC's."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sop.data.masks import mask_library
from sop.data.objects import Objects, Rle, overlaps

Truth = tuple[tuple[int, int], Objects]  # height and width of an image, and what it holds

# As pycocotools orders its twelve numbers.
_COCO = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
_COCO += ("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")


@dataclasses.dataclass(frozen=True)
class Found:
    """What a detector says of an image.

    Attributes:
      boxes: float [k, 4], edges (x1, y1, x2, y2) in pixels of the original image.
      scores: float [k].
      labels: int [k].
      masks: of each; None: it makes none.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: Sequence[Rle] | None = None


def average_precision(
    truths: Mapping[int, Truth], found: Mapping[int, Found], class_names: Sequence[str]
) -> dict[str, Any]:
    """All scores of detections.

    Args:
      truths: image → what it holds.
      found: image → what was found there, of the same images.
      class_names: of the labels.
    Returns:
      COCO's twelve numbers by their names ('AP', 'AP50', …, 'AR_large'), in [0, 1], None where no
      object counts; the same with 'mask_' before where there are masks; VOC's mean AP as 'VOC_AP'
      (area under the curve) and 'VOC_AP11' (eleven points); 'per_class': {name: {'AP', 'AP50',
      'VOC_AP'}}; and 'count' of images. In COCO's numbers difficult objects are as crowds.
    """
    coco, per_class = coco_scores(truths, found, class_names)
    area = voc_average_precision(truths, found, len(class_names))
    eleven = voc_average_precision(truths, found, len(class_names), eleven_points=True)
    scores: dict[str, Any] = {**coco, "VOC_AP": _mean(area), "VOC_AP11": _mean(eleven)}
    has_masks = all(each.masks is not None for each in found.values())
    if has_masks and any(objects.masks is not None for _, objects in truths.values()):
        masks, masks_per_class = coco_scores(truths, found, class_names, masks=True)
        scores |= {f"mask_{name}": value for name, value in masks.items()}
        per_class = [
            a | {"mask_AP": b["AP"]} for a, b in zip(per_class, masks_per_class, strict=True)
        ]
    table = [row | {"VOC_AP": _finite(value)} for row, value in zip(per_class, area, strict=True)]
    scores["per_class"] = dict(zip(class_names, table, strict=True))
    return {**scores, "count": len(truths)}


def coco_scores(
    truths: Mapping[int, Truth],
    found: Mapping[int, Found],
    class_names: Sequence[str],
    masks: bool = False,
) -> tuple[dict[str, float | None], list[dict[str, float | None]]]:
    """COCO's twelve numbers, and 'AP' and 'AP50' of each class; of boxes or of masks."""
    library = mask_library()
    images = [{"id": i, "height": size[0], "width": size[1]} for i, (size, _) in truths.items()]
    categories = [{"id": label, "name": name} for label, name in enumerate(class_names)]
    annotations = [
        {**each, "id": number}
        for number, each in enumerate(_annotations(truths, masks), 1)  # 0 means: no match
    ]
    truth = library.COCO({"images": images, "annotations": annotations, "categories": categories})
    said = truth.loadRes([row for i, each in found.items() for row in as_coco(i, each, masks)])
    kind = "segm" if masks else "bbox"
    evaluation = library.COCOeval_faster(truth, said, kind, print_function=lambda *said: None)
    evaluation.run()
    numbers = [_finite(each if each >= 0 else np.nan) for each in evaluation.stats]
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class]
    per_class = [
        {"AP": _of_counted(precision[:, :, k]), "AP50": _of_counted(precision[0, :, k])}
        for k in range(len(class_names))
    ]
    return dict(zip(_COCO, numbers, strict=True)), per_class


def _annotations(truths: Mapping[int, Truth], masks: bool):
    for image, (_, objects) in truths.items():
        ignored = objects.crowd | objects.difficult
        for row in range(len(objects)):
            annotation = {
                "image_id": image,
                "category_id": int(objects.labels[row]),
                "bbox": _with_sides(objects.boxes[row]),
                "area": float(objects.areas[row]),
                "iscrowd": int(ignored[row]),
            }
            if masks:
                annotation["segmentation"] = objects.masks[row]
            yield annotation


def _with_sides(box: np.ndarray) -> list[float]:
    """COCO's box, (x, y, width, height)."""
    left, top, right, bottom = box.astype(float).tolist()
    return [left, top, right - left, bottom - top]


def as_coco(image: int, found: Found, masks: bool = False) -> list[dict[str, Any]]:
    """The rows of COCO's format of results, with labels as categories."""
    rows = []
    for row in range(len(found.scores)):
        entry = {
            "image_id": image,
            "category_id": int(found.labels[row]),
            "bbox": _with_sides(found.boxes[row]),
            "score": float(found.scores[row]),
        }
        if masks and found.masks is not None:  # the area of the mask counts, not that of the box
            entry = {**entry, "segmentation": found.masks[row]}
            del entry["bbox"]
        rows.append(entry)
    return rows


def voc_average_precision(
    truths: Mapping[int, Truth],
    found: Mapping[int, Found],
    num_classes: int,
    eleven_points: bool = False,
    threshold: float = 0.5,
) -> list[float]:
    """VOC's average precision of each class; NaN where there is no object.

    In the order of scores each detection takes the object of its class that it overlaps most; it is
    right if their IoU is at least `threshold` and the object was not taken before. Difficult
    objects do not count, nor do detections that take one. With p(r) the highest precision at a
    recall of at least r: ∫ p dr, as from VOC 2010 on, or the mean of p(0), p(0.1), …, p(1).

    Everingham et al., "The Pascal Visual Object Classes Challenge" (2010), §4.2.
    """
    return [
        _voc_of_class(truths, found, label, eleven_points, threshold)
        for label in range(num_classes)
    ]


def _voc_of_class(truths, found, label, eleven_points, threshold):
    boxes, ignored = {}, {}
    for image, (_, objects) in truths.items():
        mine = objects.labels == label
        boxes[image] = objects.boxes[mine].astype(np.float64)
        ignored[image] = (objects.difficult | objects.crowd)[mine]
    positives = sum(int((~each).sum()) for each in ignored.values())
    if not positives:
        return float("nan")
    rows = [
        (float(each.scores[row]), image, each.boxes[row].astype(np.float64))
        for image, each in found.items()
        for row in np.flatnonzero(each.labels == label)
    ]
    taken = {image: np.zeros(len(each), bool) for image, each in boxes.items()}
    right = []
    for _, image, box in sorted(rows, key=lambda row: -row[0]):
        ious = overlaps(box, boxes[image])
        best = int(ious.argmax()) if len(ious) else -1
        if best < 0 or ious[best] < threshold:
            right.append(False)
        elif not ignored[image][best]:
            right.append(not taken[image][best])
            taken[image][best] = True
    hits = np.cumsum(right, dtype=np.float64)
    recall, precision = hits / positives, hits / np.arange(1, len(hits) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    if eleven_points:
        at = [highest[recall >= step - 1e-9] for step in np.linspace(0, 1, 11)]
        return float(np.mean([each[0] if len(each) else 0.0 for each in at]))
    return float(np.sum(np.diff(recall, prepend=0.0) * highest))


def _mean(values: Sequence[float]) -> float | None:
    counted = [each for each in values if not np.isnan(each)]
    return float(np.mean(counted)) if counted else None


def _of_counted(precision: np.ndarray) -> float | None:
    """Mean of COCO's precisions, of which those of classes without objects are −1."""
    counted = precision[precision > -1]
    return float(counted.mean()) if counted.size else None


def _finite(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
