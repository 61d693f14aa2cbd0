"""What second-order pooling gains on data that every machine has.

  python -m results.study PART   runs what is missing of a part and adds it to results/runs.csv
  python -m results.study PART --time   times its training steps in turns, into results/speed.csv
  python -m results.page         writes results/README.md and its figures from results/runs.csv

The parts stand in results/parts.py. Rows that stand in results/runs.csv are not run again, on
whatever machine, so a part goes on from there: commit the file as it grows. Work folders stand in
runs/study.
"""

import socket
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax

from results.parts import PARTS, plan
from sop.command import Parser, count, run
from sop.errors import UsageError, did_you_mean
from sop.results.record import FIELDS, Row, fingerprint, image_size, read_csv, record, write_csv
from sop.results.speed import measure
from sop.sweep.plan import Run, refuse_unfit
from sop.sweep.progress import failure, result
from sop.sweep.runner import execute
from sop.sweep.tuning import phases
from sop.training.loop import DIVERGED

FOLDER = Path(__file__).resolve().parent
RUNS, SPEED = FOLDER / "runs.csv", FOLDER / "speed.csv"
KEY = ("part", "method", "seed", "config")
FAILED = "failed"  # the purpose of a run whose training became NaN or infinite


def key(row: Row) -> tuple:
    """What two runs that are the same have in common."""
    return tuple(row[name] for name in KEY)


def outdated(rows: Iterable[Row], part: str, run: Run) -> list[Row]:
    """Rows of this method and seed that were made with what was best before."""
    new = fingerprint(run.config)
    same = (part, run.method, run.seed)
    return [row for row in rows if key(row)[:-1] == same and row["config"] != new]


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
    sweeps = plan(part, Path()).sweeps
    runs = [run for sweep in sweeps for run in sweep.runs() if run.seed == 0]
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
    planned = plan(part, options.workdir)

    def key_of(run: Run) -> tuple:
        return part, run.method, run.seed, fingerprint(run.config)

    def found(run: Run) -> Row | None:
        row = rows.get(key_of(run))
        return row if row and row["purpose"] != FAILED else None

    def add(row: Row) -> None:
        rows[key(row)] = row
        write(list(rows.values()))

    def finished(run: Run) -> None:
        add(row_of(part, run))

    lists = (runs for each in planned.sweeps for runs in phases(each, planned.tuning, found))
    for runs in lists:
        # At once, lest a page that is made meanwhile mix seeds of two rates.
        for old in [row for each in runs for row in outdated(rows.values(), part, each)]:
            del rows[key(old)]
            write(list(rows.values()))
        missing = [run for run in sorted(runs, key=lambda run: run.seed) if key_of(run) not in rows]
        refuse_unfit(missing)
        print(f"{part}: {len(runs)} runs, {len(missing)} missing", flush=True)
        for each in filter(result, missing):  # finished, but not written down
            finished(each)
        if not execute(missing, options.jobs, finished):
            return
        for each in missing:
            if failure(each).startswith(DIVERGED):
                add(dict(zip(KEY, key_of(each), strict=True)) | {"purpose": FAILED})


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
