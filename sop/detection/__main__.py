"""Finds objects in images: python -m sop.detection --workdir=RUN --images='photos/**/*.jpg'

Writes detections.json, in COCO's format of results, and pictures of the images with their boxes and
masks. Without --images it takes the first images of the run's evaluation split, whose true boxes it
draws beside them, dashed.
"""

from collections.abc import Sequence

from sop.command import Parser, count, folder, run


def make_parser() -> Parser:
    parser = Parser(prog="python -m sop.detection", description=__doc__)
    parser.add_argument("--workdir", type=folder, required=True, help="of the detector's run")
    parser.add_argument("--checkpoint", default="best", help="'best', 'latest' or a step (best)")
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="NAME",
        help="files, folders, globs ('photos/**/*.jpg'), or a split of the data set ('split:test')",
    )
    parser.add_argument(
        "--count",
        type=count(10**6),
        default=8,
        metavar="N",
        help="images of the evaluation split without --images (8)",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="of the scores of what is drawn (0.5)"
    )
    parser.add_argument("--out", type=folder, help="folder; default: WORKDIR/detections")
    return parser


def main(arguments: Sequence[str]) -> None:
    options = make_parser().parse_args(arguments)
    from sop.detection.finding import find

    find(
        options.workdir,
        options.images,
        checkpoint=options.checkpoint,
        out=options.out,
        count=options.count,
        threshold=options.threshold,
    )


if __name__ == "__main__":
    run(main)
