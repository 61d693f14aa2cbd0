"""Compares the runs of a sweep: python -m sop.results DIR [--baseline=METHOD] [--time]

A line for each method, whose runs differ in their seeds alone: the mean of top-1 (of detectors AP,
AP50 and AP of masks) after the last epoch with its 95 % interval, the difference to the baseline
paired by seed, parameters and multiply–adds; with --time images per second and memory of its
training step; with --robustness calibration of classifiers, and accuracy on noisy, blurred and pale
images. OUT gets runs.csv, table.csv, table.json, and figures: accuracy against cost and against
training size, curves.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sop.command import Parser, disk_folder, run
from sop.errors import UsageError
from sop.results.figures import draw_cost, draw_sizes
from sop.results.record import Row, image_size, read_folder, write_csv
from sop.results.speed import Speed, measure
from sop.results.table import as_text, summarize, write_tables
from sop.training.history import read_history
from sop.training.plots import draw_groups
from sop.training.workdir import run_config


def make_parser() -> Parser:
    """The flags of this command."""
    parser = Parser(prog="python -m sop.results", description=__doc__)
    parser.add_argument(
        "folder", type=disk_folder, metavar="DIR", help="of a sweep: it holds work folders"
    )
    parser.add_argument("--baseline", metavar="METHOD", help="that the others are compared with")
    parser.add_argument("--time", action="store_true", help="the training steps, in turns")
    parser.add_argument(
        "--robustness", action="store_true", help="calibration, and accuracy on worse images"
    )
    parser.add_argument("--out", type=disk_folder, metavar="OUT", help="default: DIR/results")
    return parser


def main(arguments: Sequence[str]) -> None:
    options = make_parser().parse_args(arguments)
    place = Path(options.folder)
    runs = read_folder(place)
    summarize(list(runs.values()), options.baseline)  # refuses before time is spent
    if options.robustness:
        runs = read_folder(place, robustness=True)
    rows = list(runs.values())
    lines = summarize(rows, options.baseline, _timed(runs) if options.time else None)
    out = Path(options.out or place / "results")
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "runs.csv", rows)
    write_tables(out, lines)
    draw_cost(out / "accuracy_cost.png", lines, str(place))
    draw_sizes(out / "accuracy_size.png", lines, str(place))
    histories: dict[str, list] = {}
    for path, row in runs.items():
        histories.setdefault(row["method"], []).append(read_history(path))
    draw_groups(out / "curves.png", histories, str(place))
    print(as_text(lines))
    print(f"{out}: tables and figures of {len(rows)} runs")


def _timed(runs: Mapping[Path, Row]) -> dict[str, Speed]:
    """The speed of each method."""
    configs = {row["method"]: run_config(path) for path, row in runs.items()}
    sizes = {method: image_size(config) for method, config in configs.items()}
    if unknown := [method for method, size in sizes.items() if size is None]:
        raise UsageError(f"The images of '{unknown[0]}' are of different sizes: leave --time out.")
    return measure({method: (configs[method], size) for method, size in sizes.items() if size})


if __name__ == "__main__":
    run(main)
