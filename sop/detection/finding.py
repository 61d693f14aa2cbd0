"""Finds objects in images with the detector of a run, writes them down and draws them."""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from ml_collections import ConfigDict

from sop.data.annotated import open_annotated
from sop.data.images import BadImageError
from sop.data.masks import decode_mask
from sop.data.objects import Objects
from sop.detection.metric import Found, as_coco
from sop.progress import shown
from sop.training.durable import write_figure, write_json
from sop.training.storage import locate
from sop.training.workdir import refuse_another_model, run_config
from sop.using.detector import Detector, open_detector
from sop.using.figures import show_image, title
from sop.using.images import named

_FOLDER = "detections"
_SPLIT = "split:"
_PAGE = 8  # images


class Named(NamedTuple):
    """An image to look into: uint8 [H, W, 3], and what is known to be there, if anything is."""

    name: str
    pixels: np.ndarray
    truth: Objects | None


def _files(run: Detector, names: Sequence[str]) -> tuple[int, Iterator[Named]]:
    """How many images there are, and those that can be decoded."""
    given, _ = named(names, ConfigDict(), ())

    def decoded():
        for index in range(len(given)):
            path = Path(given.describe(index))
            try:
                yield Named(path.name, run.decode(given[index][0]), None)
            except (BadImageError, OSError) as error:
                print(f"{path} is left out: {error}.")

    return len(given), decoded()


def _of_split(run: Detector, split: str, most: int | None) -> tuple[int, Iterator[Named]]:
    """The first images of a split, with their objects."""
    options = run.config.input
    source = open_annotated(options.dataset, split, options.data_dir)
    count = min(len(source), most or len(source))

    def read():
        for index in range(count):
            data, objects = source[index]
            yield Named(f"{split} {index}", run.decode(data), objects)

    return count, read()


def draw(axes: Axes, image: Named, found: Found, names: Sequence[str], threshold: float) -> None:
    """The image, and what is found of higher scores than `threshold`; true boxes dashed."""
    show_image(axes, image.pixels)
    box = partial(_box, axes)
    if image.truth is not None:
        for corners in image.truth.boxes:
            box(corners, edgecolor="white", linestyle="--")
    for row in np.flatnonzero(found.scores > threshold):
        color, corners = f"C{found.labels[row] % 10}", found.boxes[row]
        box(corners, edgecolor=color)
        axes.text(
            *corners[:2] - 0.5,
            f"{names[found.labels[row]]} {found.scores[row]:.2f}",
            fontsize=6,
            va="bottom",
            color="white",
            bbox={"facecolor": color, "pad": 0.5, "linewidth": 0},
            parse_math=False,
        )
        if found.masks is not None:
            mask = decode_mask(found.masks[row])
            if mask.any():  # else matplotlib warns
                axes.contourf(mask, levels=[0.5, 1.5], colors=[color], alpha=0.4)
    title(axes, image.name, fontsize=7)


def _box(axes: Axes, corners: np.ndarray, **look: Any) -> None:
    left, top, right, bottom = corners - 0.5  # the first pixel is drawn around 0
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, **look))


def _written(image: int, found: Found) -> Iterator[dict[str, Any]]:
    """The rows of a file of COCO's results, with masks where there are any."""
    for place, row in enumerate(as_coco(image, found)):
        if found.masks is not None:
            rle = found.masks[place]
            row["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
        yield row


def find(
    workdir: str | Path,
    images: Sequence[str] | None = None,
    *,
    config: ConfigDict | None = None,
    checkpoint: str = "best",
    out: str | None = None,
    count: int = 8,
    threshold: float = 0.5,
) -> None:
    """Writes detections.json, in COCO's format of results, and pictures page1.png, ….

    Args:
      workdir, checkpoint: see `sop.load`.
      config: checked, of the run's model; None: the run's own.
      images: files, folders, globs, or one 'split:NAME' of the run's data set; None: the first of
        its evaluation split. The true boxes of a split are drawn too, dashed.
      out: folder of the results; None: `WORKDIR/detections`.
      count: how many images without `images`.
      threshold: of the scores of what is drawn.
    Raises:
      UsageError: as `sop.load`, the run is no detector, or a name leads to no image.
    """
    if config is not None:
        refuse_another_model(workdir, config)
    run = open_detector(workdir, config or run_config(workdir), checkpoint)
    if images is None:
        total, source = _of_split(run, run.config.input.eval_split, count)
    elif len(images) == 1 and images[0].startswith(_SPLIT):
        total, source = _of_split(run, images[0].removeprefix(_SPLIT), None)
    else:
        total, source = _files(run, images)
    folder = locate(out or f"{workdir}/{_FOLDER}")
    folder.mkdir(parents=True, exist_ok=True)
    rows, seen = [], 0
    pairs = (
        (image, run.detect(image.pixels)[0])
        for image in shown(((1, each) for each in source), total, "detecting")
    )
    for number, page in enumerate(iter(lambda: list(itertools.islice(pairs, _PAGE)), []), 1):
        for image, found in page:
            rows += [{"file_name": image.name, **row} for row in _written(seen, found)]
            seen += 1
        picture = _page(page, run.class_names, threshold)
        write_figure(folder / f"page{number}.png", picture, dpi=120)
    write_json(folder / "detections.json", rows)
    print(f"{len(rows)} detections in {seen} images: {folder}/detections.json, {folder}/page*.png")


def _page(images: Sequence[tuple[Named, Found]], names: Sequence[str], threshold: float) -> Figure:
    columns = min(4, len(images))
    lines = -(-len(images) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.8 * lines), layout="tight")
    for place, (image, found) in enumerate(images, 1):
        draw(figure.add_subplot(lines, columns, place), image, found, names, threshold)
    return figure
