"""Draws examples of a data set: python -m sop.data.show DATASET --out=FILE.png

A row of the picture holds the first examples of a class. Images of one size are drawn as they are,
others are made smaller.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sop.command import Parser, count, run
from sop.data.images import BadImageError, decode
from sop.data.source import Source
from sop.data.sources import open_source
from sop.errors import UsageError

_MARGIN = 1
_THUMBNAIL = 64  # pixels, of images that differ in size


def examples(source: Source, classes: int, columns: int) -> list[list[np.ndarray]]:
    """The first `columns` images, uint8 [H, W, 3], of each of the first `classes` classes."""
    rows: list[list[np.ndarray]] = [[] for _ in source.class_names[:classes]]
    missing = len(rows) * columns
    for index in range(len(source)):
        if not missing:
            break
        data, label = source[index]
        if label < len(rows) and len(rows[label]) < columns:
            try:
                rows[label].append(decode(data))
            except BadImageError as error:
                raise UsageError(f"{source.describe(index)} cannot be shown: {error}.") from error
            missing -= 1
    return rows


def picture(source: Source, classes: int, columns: int) -> Image.Image:
    """Rows of examples, each with the name of its class on the left."""
    height, width = source.image_size or (_THUMBNAIL, _THUMBNAIL)
    rows = examples(source, classes, columns)
    names = source.class_names[: len(rows)]
    canvas = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left = int(max(canvas.textlength(name) for name in names)) + 6
    step = height + _MARGIN, width + _MARGIN
    sheet = Image.new("RGB", (left + columns * step[1], len(rows) * step[0]), "white")
    canvas = ImageDraw.Draw(sheet)
    for row, (name, images) in enumerate(zip(names, rows, strict=True)):
        canvas.text((2, row * step[0] + height // 2), name, "black", anchor="lm")
        for column, pixels in enumerate(images):
            image = Image.fromarray(pixels)
            image.thumbnail((width, height))
            sheet.paste(image, (left + column * step[1], row * step[0]))
    red, *others = sheet.split()
    return red if all(each == red for each in others) else sheet


def make_parser() -> Parser:
    parser = Parser(prog="python -m sop.data.show", description=__doc__)
    parser.add_argument("dataset", help="as config.input.dataset")
    parser.add_argument("--split", default="train", help="also parts and sums: 'train[:90%%]'")
    parser.add_argument("--data_dir", help="folder of all TFDS data sets")
    parser.add_argument(
        "--classes", type=count(1000), default=30, metavar="N", help="of the first N (30)"
    )
    parser.add_argument(
        "--columns", type=count(1000), default=12, metavar="N", help="examples of each (12)"
    )
    parser.add_argument("--out", type=Path, required=True, help="the picture, .png")
    return parser


def main(arguments: Sequence[str]) -> None:
    options = make_parser().parse_args(arguments)
    if options.out.suffix.lower() != ".png":
        raise UsageError(f"--out={options.out} is no name of a picture: let it end in .png.")
    source = open_source(options.dataset, options.split, options.data_dir)
    picture(source, options.classes, options.columns).save(options.out, optimize=True)
    print(f"{options.out} shows {options.split!r} of {options.dataset}.")


if __name__ == "__main__":
    run(main)
