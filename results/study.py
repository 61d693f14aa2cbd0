"""What second-order pooling gains on data that every machine has.

  python -m results.study PART   runs what is missing of a part and adds it to results/runs.csv
  python -m results.study PART --time   times its training steps in turns, into results/speed.csv
  python -m results.page         writes results/README.md and its figures from results/runs.csv

A part compares the heads, the attentions or the local poolings of one small network on one data
set. Each method tries the same learning rates on a validation split, heads also two for their
classifiers; the best one is trained with five seeds and evaluated on the test split, after the last
epoch. Rows that stand in results/runs.csv are not run again, on whatever machine, so a part goes on
from there: commit the file as it grows. Work folders stand in runs/study.
"""

import dataclasses
import socket
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from sop.command import Parser, count, run
from sop.errors import UsageError, did_you_mean
from sop.results.record import FIELDS, Row, fingerprint, image_size, read_csv, record, write_csv
from sop.results.speed import measure
from sop.sweep.grid import Grid
from sop.sweep.plan import Run, Sweep, refuse_unfit
from sop.sweep.progress import result
from sop.sweep.runner import execute
from sop.sweep.tuning import Tuning, phases

FOLDER = Path(__file__).resolve().parent
RUNS, SPEED = FOLDER / "runs.csv", FOLDER / "speed.csv"
RATES = Grid("optimizer.learning_rate", ("0.02", "0.06", "0.2", "0.6"))
# Of a head's classifier: one of a vector of length 1 needs a larger rate than what is below it.
FACTOR = 30.0
FACTORS = Grid(
    "optimizer.lr_multipliers",
    tuple(f"(('^classifier/', {factor}),)" for factor in (1.0, FACTOR)),
)
SEEDS = 5
BASELINES = {"heads": "representation=gavp", "attention": "attention=none", "pooling": "pool=None"}


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set and the recipe on it.

    Attributes:
      config: FILE.py:EXPERIMENT.
      changes: of the recipe.
      tuning: splits to train and to choose on.
      classes: how many.
    """

    config: str
    changes: Mapping[str, str]
    tuning: tuple[str, str]
    classes: int

    def fixed(self, last_stride: int) -> tuple[str, ...]:
        """What all runs have in common."""
        changes = {"input.eval_split": "test", "model.last_stride": str(last_stride)}
        return tuple(
            f"--config.{key}={value}" for key, value in {**self.changes, **changes}.items()
        )


def _crops(size: int, epochs: int) -> dict[str, str]:
    return {
        "input.train_transforms": f"pad_crop({size}, 0)",
        "input.eval_transforms": f"center_crop({size})",
        "num_epochs": str(epochs),
        "eval_every_epochs": str(epochs),
    }


DATA = {
    "typefaces": Data("configs/typefaces.py:gavp", _crops(16, 12), ("train", "validation"), 22),
    "textures": Data("configs/textures.py:gavp", _crops(16, 3), ("train", "validation"), 3),
    "mnist_5k": Data(
        "configs/mnist_5k.py:gavp",
        {
            **_crops(20, 10),
            "input.train_split": "train[:1000]",
            "input.train_transforms": "resize_short(20) | pad_crop(20, 1)",
            "input.eval_transforms": "resize_short(20)",
        },
        ("train[:800]", "train[800:1000]"),
        10,
    ),
}


def heads(classes: int) -> Grid:
    """On the network's own 64 channels, without dropout: what differs is the head alone.

    The hidden layer of the second has as many parameters, with its classifier, as the classifier on
    the 64·65/2 entries of a covariance.
    """
    hidden = round(64 * 65 / 2 * classes / (65 + classes))
    plain = "'name': 'mpncov', 'reduction': 0, 'dropout': 0.0"
    roots = (f"'normalization': '{name}'" for name in ("none", "eigh"))
    iterations = (f"'num_iters': {number}" for number in (1, 3, 5))
    values = (
        "{'name': 'gavp'}",
        f"{{'name': 'gavp', 'hidden': {hidden}}}",
        "{'name': 'bcnn'}",
        "{'name': 'compact_bilinear', 'projected_dim': 2048}",
        *(f"{{{plain}, {option}}}" for option in (*roots, *iterations)),
    )
    return Grid("model.representation", values)


def attentions(classes: int) -> Grid:
    """In every block, as published; GSoP at 32 channels."""
    gsop = "'name': 'gsop', 'dim': 32"
    gsops = (
        f"{{{gsop}, 'manner': '{manner}'}}" for manner in ("channel", "position", "fusion_avg")
    )
    others = (f"{{'name': '{name}'}}" for name in ("none", "se", "eca", "cgd", "cgd_toy"))
    return Grid("model.attention", (*others, *gsops))


def poolings(classes: int) -> Grid:
    """In the place of strided convolutions; None keeps these."""
    return Grid("model.pool.name", ("None", "max", "average", "max_entropy", "gfgp"))


KINDS = {"heads": heads, "attention": attentions, "pooling": poolings}
TUNED = {"heads": (RATES, FACTORS), "attention": (RATES,), "pooling": (RATES,)}
PARTS = [f"{data}_{kind}" for data in DATA for kind in KINDS]


def plan(part: str, workdir: Path) -> tuple[Sweep, Tuning]:
    """The sweep of a part, and its tuning.

    The last stage has stride 1, as MPN-COV and GSoP ask for, whatever the method is; but where the
    pooling itself is compared.
    """
    name, _, kind = part.rpartition("_")
    data = DATA[name]
    grids = (KINDS[kind](data.classes),)
    fixed = data.fixed(last_stride=2 if kind == "pooling" else 1)
    sweep = Sweep(data.config, fixed, grids, SEEDS, workdir / part)
    return sweep, Tuning(TUNED[kind], *data.tuning)


def key(row: Row) -> tuple:
    """What two runs that are the same have in common."""
    return row["part"], row["method"], row["seed"], row["config"]


def row_of(part: str, run: Run) -> Row:
    """A finished run as a row of results/runs.csv."""
    tuned = run.workdir.parent.name == "tuning"
    row = record(run.workdir, run.method, robustness=not tuned)
    return {"part": part, "purpose": "tuning" if tuned else "test", **row}


def write(rows: Sequence[Row]) -> None:
    """Replaces results/runs.csv by rows, of which older ones may lack fields."""
    whole = [{**dict.fromkeys(("part", "purpose", *FIELDS)), **row} for row in rows]
    write_csv(RUNS, sorted(whole, key=lambda row: [str(each) for each in key(row)]))


def time_steps(part: str) -> None:
    """Times a training step of each method of a part, in turns, on this machine."""
    sweep, _ = plan(part, Path())
    runs = [run for run in sweep.runs() if run.seed == 0]
    sizes = {run.method: (run.config, image_size(run.config)) for run in runs}
    rows = [
        {"part": part, "method": method, **speed._asdict(), "machine": machine()}
        for method, speed in measure(sizes).items()
    ]
    write_csv(SPEED, [*(row for row in read_csv(SPEED) if row["part"] != part), *rows])


def machine() -> str:
    """As rows of runs have it."""
    return f"{socket.gethostname()}: {jax.device_count()} × {jax.devices()[0].device_kind}"


def work(part: str, options: Namespace) -> None:
    """Runs what is missing of a part."""
    rows = {key(row): row for row in read_csv(RUNS)}

    def found(run: Run) -> Row | None:
        return rows.get((part, run.method, run.seed, fingerprint(run.config)))

    def finished(run: Run) -> None:
        row = row_of(part, run)
        rows[key(row)] = row
        write(list(rows.values()))

    for runs in phases(*plan(part, options.workdir), found):
        missing = [run for run in sorted(runs, key=lambda run: run.seed) if not found(run)]
        refuse_unfit(missing)
        print(f"{part}: {len(runs)} runs, {len(missing)} missing", flush=True)
        for each in filter(result, missing):  # finished, but not written down
            finished(each)
        if not execute(missing, options.jobs, finished):
            return


def make_parser() -> Parser:
    """The flags of this command."""
    parser = Parser(prog="python -m results.study", description=__doc__)
    parser.add_argument("part", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--workdir", type=Path, default=Path("runs/study"), metavar="DIR")
    parser.add_argument("--time", action="store_true", help="time its steps, run nothing")
    parser.add_argument("--jobs", type=count(10**4), default=1, metavar="N", help="runs at a time")
    return parser


def main(arguments: Sequence[str]) -> None:
    options = make_parser().parse_args(arguments)
    if options.part not in PARTS:
        hint = did_you_mean(options.part, PARTS)
        raise UsageError(f"There is no part '{options.part}'.{hint} There are {', '.join(PARTS)}.")
    if options.time:
        time_steps(options.part)
        return
    jax.config.update("jax_platforms", "cpu")  # the devices are for the runs
    work(options.part, options)


if __name__ == "__main__":
    run(main)
