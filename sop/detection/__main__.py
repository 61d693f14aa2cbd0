"""Finds objects in images: python -m sop.detection --workdir=RUN --images='photos/**/*.jpg'

Writes detections.json, in COCO's format of results, and pictures of the images with their boxes and
masks.
Without --images it takes the first images of the run's evaluation split, whose true boxes it draws
beside them, dashed.
"""

import glob
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sop.command import Parser, count, folder, run
from sop.config import stage_configs
from sop.data import images as codec
from sop.data.annotated import open_annotated
from sop.data.images import BadImageError
from sop.data.masks import decode_mask
from sop.data.objects import Objects, make_objects
from sop.data.scene_examples import to_original
from sop.data.scenes import Scene, parse_scenes
from sop.detection import create_detector
from sop.detection.metric import Found, as_coco
from sop.errors import UsageError
from sop.models.lookup import is_detector
from sop.progress import shown
from sop.training.checkpoints import Checkpoints
from sop.training.detection import Detection
from sop.training.durable import write_figure, write_json
from sop.training.saved import saved_progress
from sop.training.step import make_mesh, replicated
from sop.training.storage import locate
from sop.training.workdir import run_config
from sop.using.figures import show_image, title

_FOLDER = "detections"


class Named(NamedTuple):
    """An image to look into: uint8 [H, W, 3], and what is known to be there, if anything is."""

    name: str
    pixels: np.ndarray
    truth: Objects | None


def load_detector(workdir: str | Path, checkpoint: str = "best"):
    """The detector of a run.

    Returns:
      a function of uint8 images [H, W, 3] to `sop.detection.metric.Found`, in their pixels, and the
      names of the classes.
    Raises:
      UsageError: the folder holds no run of a detector, or no such checkpoint.
    """
    config = stage_configs(run_config(workdir))[-1]
    if not is_detector(config.model):
        raise UsageError(f"The run in {workdir} is no detector: use main.py --mode=predict.")
    model = create_detector(config.model, dtype=jnp.dtype(config.dtype))
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        variables, *_ = checkpoints.restore_variables(checkpoint, replicated(make_mesh()))
    pipeline = parse_scenes(config.input.eval_transforms, training=False)
    forward = jax.jit(Detection(config, model).forward)

    def detect(image: np.ndarray) -> Found:
        size = image.shape[:2]
        scene = pipeline(Scene(image, make_objects([], []), None, size), np.zeros(0))
        batch = {"image": scene.image[None], "size": np.float32([scene.size])}
        said = {name: np.asarray(x[0]) for name, x in forward(variables, batch).items()}
        return to_original({**said, "size": np.float32(scene.size)}, size)

    return detect, saved_progress(workdir)["data"][-1]["train"]["classes"]


def _files(pattern: str) -> list[Path]:
    paths = [Path(each) for each in sorted(glob.glob(pattern, recursive=True))]
    if not (files := [path for path in paths if path.is_file()]):
        raise UsageError(f"--images={pattern} matches no file: check the pattern.")
    return files


def _decoded(files: Sequence[Path]) -> Iterator[Named]:
    for path in files:
        try:
            yield Named(path.name, codec.decode(path.read_bytes()), None)
        except (BadImageError, OSError) as error:
            print(f"{path} is left out: {error}.")


def _of_split(workdir: str, count: int) -> Iterator[Named]:
    options = stage_configs(run_config(workdir))[-1].input
    source = open_annotated(options.dataset, options.eval_split, options.data_dir)
    for index in range(min(count, len(source))):
        data, objects = source[index]
        yield Named(f"{options.eval_split} {index}", codec.decode(data), objects)


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


def make_parser() -> Parser:
    parser = Parser(prog="python -m sop.detection", description=__doc__)
    parser.add_argument("--workdir", type=folder, required=True, help="of the detector's run")
    parser.add_argument("--checkpoint", default="best", help="'best', 'latest' or a step (best)")
    parser.add_argument("--images", help="files, as a pattern; **: folders in folders")
    parser.add_argument(
        "--count",
        type=count(10**6),
        default=8,
        metavar="N",
        help="images of the evaluation split without --images (8)",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="of the scores of boxes that are drawn (0.5)"
    )
    parser.add_argument("--out", type=folder, help=f"folder; default: WORKDIR/{_FOLDER}")
    return parser


def main(arguments: Sequence[str]) -> None:
    options = make_parser().parse_args(arguments)
    out = locate(options.out) if options.out else locate(options.workdir) / _FOLDER
    files = _files(options.images) if options.images else None
    detect, names = load_detector(options.workdir, options.checkpoint)
    images = _of_split(options.workdir, options.count) if files is None else _decoded(files)
    total = options.count if files is None else len(files)
    out.mkdir(parents=True, exist_ok=True)
    rows, sheet = [], []
    for image in shown(((1, each) for each in images), total, "detecting"):
        found = detect(image.pixels)
        rows += [{"file_name": image.name, **row} for row in _written(len(sheet), found)]
        sheet.append((image, found))
    write_json(out / "detections.json", rows)
    columns = min(4, max(len(sheet), 1))
    for start in range(0, len(sheet), 8):
        page = sheet[start : start + 8]
        figure = Figure(figsize=(2.6 * columns, 2.8 * -(-len(page) // columns)), layout="tight")
        for place, (image, found) in enumerate(page, 1):
            axes = figure.add_subplot(-(-len(page) // columns), columns, place)
            draw(axes, image, found, names, options.threshold)
        write_figure(out / f"page{start // 8 + 1}.png", figure, dpi=120)
    print(f"{len(rows)} detections in {len(sheet)} images: {out}/detections.json, {out}/page*.png")


if __name__ == "__main__":
    run(main)
