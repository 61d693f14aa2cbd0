"""Where examples of detection come from: TFDS, folders in COCO's format, folders of VOC's.

As in `sop.data.sources` any example of a split is had by its index, still encoded.
"""

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sop.data import images as codec
from sop.data.folders import read_file
from sop.data.masks import encode_mask, read_segmentation
from sop.data.objects import Annotated, Objects, make_objects
from sop.data.source import identity_of
from sop.data.sources import TFDSSource
from sop.errors import UsageError, did_you_mean, show

_VOC_BOTH = "voc/0712"
_VOC_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


def open_annotated(dataset: str, split: str, data_dir: str | None = None) -> Annotated:
    """Opens a split of a data set for detection.

    Args:
      dataset: 'coco:/path', a folder with annotations/instances_SPLIT.json and the images in
        SPLIT/; 'voc:/path', one with JPEGImages/, Annotations/ and ImageSets/Main/SPLIT.txt, or
        with such folders, whose splits are then 'VOC2007/trainval'; or a TFDS name, whose examples
        have 'objects'. 'voc/0712' is 'voc/2007' and, but for the split 'test', 'voc/2012' as well.
      split: its name; of TFDS and VOC also a sum, 'train+validation'.
      data_dir: of TFDS; None means TFDS's own default.
    Raises:
      UsageError: there is no such data set or split, or its annotations cannot be meant.
    """
    kind, colon, path = dataset.partition(":")
    if colon and kind in _FOLDERS:
        root = Path(path).expanduser()
        if not root.is_dir():
            raise UsageError(
                f"Folder {path} of config.input.dataset does not exist; see docs/detection.md for "
                f"what {kind}:/path holds."
            )
        if "[" in split:
            raise UsageError(
                f"Split {split!r} is a part of one, which {kind}:/path does not have: name whole "
                "splits, of a sweep's tuning --validation=TRAIN,VALIDATION."
            )
        return _FOLDERS[kind](root, split)
    if dataset == _VOC_BOTH:
        years = ("2007",) if split.startswith("test") else ("2007", "2012")
        return Joined([TFDSObjects(f"voc/{year}", split, data_dir) for year in years], split)
    return TFDSObjects(dataset, split, data_dir)


class Joined:
    """Several sources of the same classes, one after the other."""

    def __init__(self, sources: Sequence[Annotated], split: str):
        self._sources = sources
        self._starts = np.cumsum([0, *map(len, sources)])
        self.class_names = sources[0].class_names
        self.has_masks = all(each.has_masks for each in sources)
        parts = [(each.identity["files"], len(each)) for each in sources]
        self.identity = identity_of(split, self, parts)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, index: int) -> tuple[Annotated, int]:
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._sources[which], index - int(self._starts[which])

    def __getitem__(self, index: int) -> tuple[bytes, Objects]:
        source, place = self._place(index)
        return source[place]

    def truth(self, index: int) -> tuple[tuple[int, int], Objects]:
        source, place = self._place(index)
        return source.truth(place)

    def size(self, index: int) -> tuple[int, int]:
        source, place = self._place(index)
        return source.size(place)

    def describe(self, index: int) -> str:
        source, place = self._place(index)
        return source.describe(place)


class TFDSObjects(TFDSSource):
    """A split of a data set that TFDS has prepared with 'objects', such as voc/2007, coco/2017.

    Their 'bbox' and 'label' are read, and 'is_difficult' and 'is_crowd' where there are such; masks
    from a picture 'instances' with the number of the object, from 1, at each pixel.
    """

    def _choose(self, builder: tfds.core.DatasetBuilder, dataset: str) -> dict[str, Any]:
        features = builder.info.features
        if "objects" not in features or "bbox" not in getattr(features["objects"], "feature", {}):
            raise UsageError(
                f"Data set {dataset!r} does not hold images with boxes; choose one for detection "
                "in config.input.dataset, or leave config.model.detector out."
            )
        inner = features["objects"].feature
        self.class_names = list(inner["label"].names)
        self.has_masks = "instances" in features
        # VOC counts pixels from 1, and TFDS divides what is written there.
        self._first = 1 if builder.name == "voc" else 0
        wanted = ("image", "objects", "instances")
        return {name: features[name] for name in wanted if name in features}

    def __getitem__(self, index: int) -> tuple[bytes, Objects]:
        data, objects, _ = self._example(index)
        return data, objects

    def truth(self, index: int) -> tuple[tuple[int, int], Objects]:
        _, objects, size = self._example(index)
        return size, objects

    def size(self, index: int) -> tuple[int, int]:
        with self._refused():
            return codec.image_size(self._fields(index)["image"])

    def _fields(self, index: int) -> dict[str, Any]:
        pictures = (name for name in ("image", "instances") if name in self._features)
        decoders = {name: tfds.decode.SkipDecoding() for name in pictures}
        return self._features.deserialize_example_np(self._records[index], decoders=decoders)

    def _example(self, index: int) -> tuple[bytes, Objects, tuple[int, int]]:
        with self._refused():
            example = self._fields(index)
            data, said = example["image"], example["objects"]
            height, width = codec.image_size(data)
            top, left, bottom, right = np.asarray(said["bbox"], np.float64).reshape(-1, 4).T
            boxes = np.stack([left * width, top * height, right * width, bottom * height], axis=1)
            boxes[:, :2] -= self._first
            masks = None
            if self.has_masks:
                numbers = codec.decode(example["instances"])[..., 0]
                masks = [encode_mask(numbers == 1 + place) for place in range(len(boxes))]
            objects = make_objects(
                np.rint(boxes) if self._first else boxes,
                said["label"],
                crowd=said.get("is_crowd"),
                difficult=said.get("is_difficult"),
                areas=said.get("area"),
                masks=masks,
            )
        return data, objects, (height, width)


class CocoFolder:
    """A folder in COCO's format: annotations/instances_SPLIT.json and the images in SPLIT/.

    The images may lie in images/SPLIT/ or images/ as well. Classes are in the order of the
    categories' ids. Boxes are cut off at the edges of their image; those without area are left out;
    both are counted and said.

    Raises:
      UsageError: a file is missing or is not in the format; it names the first fault.
    """

    def __init__(self, root: Path, split: str):
        file = root / "annotations" / f"instances_{split}.json"
        whole = _read_json(file)
        try:
            self._take(file, whole)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"{file} is not in COCO's format ({type(error).__name__}: {error}); see "
                "docs/detection.md."
            ) from error
        folders = [root / split, root / "images" / split, root / "images"]
        self._folder = next((each for each in folders if each.is_dir()), None)
        if self._folder is None:
            raise UsageError(f"Folder {root / split} with the images of {file} does not exist.")
        files = ((entry["file_name"], 0) for entry in self._images)
        facts = [(file.name, file.stat().st_size), *files]
        self.identity = identity_of(split, self, facts)

    def _take(self, file: Path, whole: Mapping[str, Any]) -> None:
        categories = sorted(whole["categories"], key=lambda each: each["id"])
        self.class_names = [str(each["name"]) for each in categories]
        labels = {each["id"]: label for label, each in enumerate(categories)}
        self._images = whole["images"]
        sizes = {e["id"]: (int(e["height"]), int(e["width"])) for e in self._images}
        self._rows: dict[Any, list[dict[str, Any]]] = {each: [] for each in sizes}
        faults: Counter[str] = Counter()
        self.has_masks, self.maskless = True, None
        for entry in whole["annotations"]:
            name = f"Annotation {entry.get('id')} in {file}"
            if entry["category_id"] not in labels:
                raise UsageError(
                    f"{name} has category {entry['category_id']!r}, which 'categories' lacks: add "
                    "it there, or remove the annotation."
                )
            if entry["image_id"] not in sizes:
                raise UsageError(
                    f"{name} belongs to image {entry['image_id']!r}, which 'images' lacks: add it "
                    "there, or remove the annotation."
                )
            left, top, width, height = map(float, entry["bbox"])
            box = [left, top, left + width, top + height]
            if not np.isfinite(box).all():
                raise UsageError(f"{name} has the box {entry['bbox']}: give finite numbers.")
            if (inside := _clipped(box, sizes[entry["image_id"]], faults)) is None:
                continue
            if not entry.get("segmentation"):
                self.has_masks = False
                self.maskless = self.maskless or name
            kept = {"box": inside, "label": labels[entry["category_id"]]}
            kept |= {"crowd": bool(entry.get("iscrowd", 0))}
            kept |= {"area": float(entry.get("area", width * height))}
            self._rows[entry["image_id"]].append(
                {**kept, "segmentation": entry.get("segmentation")}
            )
        _say(file, faults)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[bytes, Objects]:
        return read_file(self._folder / self._images[index]["file_name"]), self._objects(index)

    def truth(self, index: int) -> tuple[tuple[int, int], Objects]:
        return self.size(index), self._objects(index)

    def size(self, index: int) -> tuple[int, int]:
        entry = self._images[index]
        return int(entry["height"]), int(entry["width"])

    def _objects(self, index: int) -> Objects:
        rows = self._rows[self._images[index]["id"]]
        masks = None
        if self.has_masks:
            size = self.size(index)
            try:
                masks = [read_segmentation(row["segmentation"], *size) for row in rows]
            except ValueError as error:
                raise UsageError(
                    f"A segmentation of {self.describe(index)} cannot be read, {error}: mend it."
                ) from error
        return make_objects(
            [row["box"] for row in rows],
            [row["label"] for row in rows],
            crowd=[row["crowd"] for row in rows],
            areas=[row["area"] for row in rows],
            masks=masks,
        )

    def describe(self, index: int) -> str:
        return str(self._folder / self._images[index]["file_name"])


class VocFolder:
    """A folder of VOC's format, or one with several of them (VOC2007, VOC2012).

    Classes are VOC's twenty if no other name occurs in the split, else the names in 'classes.txt'
    beside the folders, one a line. Corners count pixels from 1 and are inclusive.

    Raises:
      UsageError: a file is missing or is not in the format; it names the first fault.
    """

    has_masks = False

    def __init__(self, root: Path, split: str):
        names = root / "classes.txt"
        self.class_names = list(_VOC_NAMES)
        if names.is_file():
            self.class_names = names.read_text("utf-8").split("\n")
            self.class_names = [name.strip() for name in self.class_names if name.strip()]
        faults: Counter[str] = Counter()
        self._examples: list[tuple[Path, tuple[int, int], Objects]] = []
        for part in split.split("+"):
            folder, _, listed = part.strip().rpartition("/")
            self._read_part(root / folder, listed, faults)
        _say(root, faults)
        self.identity = identity_of(
            split, self, ((path.name, len(objects)) for path, _, objects in self._examples)
        )

    def _read_part(self, folder: Path, listed: str, faults: Counter[str]) -> None:
        lists = folder / "ImageSets" / "Main"
        file = lists / f"{listed}.txt"
        if not file.is_file():
            known = sorted(path.stem for path in lists.glob("*.txt") if "_" not in path.stem)
            inner = sorted(path.name for path in folder.glob("*") if (path / "ImageSets").is_dir())
            hint = (
                did_you_mean(listed, known) or f" There are {', '.join(known or inner) or 'none'}."
            )
            raise UsageError(f"{file}, the list of a split, does not exist.{hint}")
        for line in file.read_text("utf-8").split("\n"):
            if words := line.split():
                xml = folder / "Annotations" / f"{words[0]}.xml"
                image = folder / "JPEGImages" / f"{words[0]}.jpg"
                self._examples.append((image, *self._parse(xml, faults)))

    def _parse(self, file: Path, faults: Counter[str]) -> tuple[tuple[int, int], Objects]:
        try:
            tree = ElementTree.parse(file).getroot()
            size = int(_text(tree, "size/height")), int(_text(tree, "size/width"))
            boxes, labels, difficult = [], [], []
            for each in tree.iter("object"):
                corners = [_text(each, f"bndbox/{k}") for k in ("xmin", "ymin", "xmax", "ymax")]
                left, top, right, bottom = map(float, corners)
                inside = _clipped([left - 1, top - 1, right, bottom], size, faults)
                name = _text(each, "name")
                if name not in self.class_names:
                    raise UsageError(
                        f"{file} has an object {show(name)}, which is not among the "
                        f"{len(self.class_names)} classes: write all classes into classes.txt "
                        "beside the folders."
                    )
                if inside is not None:
                    boxes.append(inside)
                    labels.append(self.class_names.index(name))
                    difficult.append((each.findtext("difficult") or "0").strip() == "1")
        except (OSError, ValueError, ElementTree.ParseError) as error:
            raise UsageError(f"{file} cannot be read as VOC's annotation ({error}).") from error
        return size, make_objects(boxes, labels, difficult=difficult)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> tuple[bytes, Objects]:
        path, _, objects = self._examples[index]
        return read_file(path), objects

    def truth(self, index: int) -> tuple[tuple[int, int], Objects]:
        _, size, objects = self._examples[index]
        return size, objects

    def size(self, index: int) -> tuple[int, int]:
        return self._examples[index][1]

    def describe(self, index: int) -> str:
        return str(self._examples[index][0])


_FOLDERS = {"coco": CocoFolder, "voc": VocFolder}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        whole = json.loads(file.read_bytes())
    except FileNotFoundError:
        found = sorted(
            path.stem.removeprefix("instances_") for path in file.parent.glob("instances_*")
        )
        raise UsageError(
            f"{file} does not exist; there are annotations of the splits {', '.join(found)}."
            if found
            else f"{file} does not exist: put the annotations there, see docs/detection.md."
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({error}).") from error
    if not isinstance(whole, dict):
        raise UsageError(f"{file} holds a list, not COCO's 'images', 'annotations', 'categories'.")
    return whole


def _clipped(
    box: Sequence[float], size: tuple[int, int], faults: Counter[str]
) -> list[float] | None:
    """The part of a box inside its image; None: there is none, or it has no area."""
    height, width = size
    inside = [
        min(max(edge, 0.0), side) for edge, side in zip(box, (width, height) * 2, strict=True)
    ]
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        faults["without area inside the image, left out"] += 1
        return None
    if max(abs(a - b) for a, b in zip(inside, box, strict=True)) > 1:  # not what was rounded
        faults["beyond the edge of the image, cut off"] += 1
    return inside


def _say(where: Path, faults: Counter[str]) -> None:
    for fault, count in faults.items():
        print(f"{where}: {count} boxes {fault}.", file=sys.stderr)


def _text(element: ElementTree.Element, path: str) -> str:
    found = element.findtext(path)
    if found is None:
        raise ValueError(f"it has no {path}")
    return found.strip()
