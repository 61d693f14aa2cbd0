"""Plans and starts many runs of main.py:

python -m sop.sweep --config=FILE.py[:EXPERIMENT] --grid='KEY=v1,v2' … --seeds=N --workdir=DIR

There is a run for each combination of the grids' values and each seed 0, …, N − 1, in a folder of
its own in DIR; --config.KEY=VALUE holds for all of them. All configs are checked before the first
run starts. The same command skips what is finished and goes on with what was stopped. With --tune,
each method first tries the same values on a validation split, and its best one is then trained.
See docs/sweeps.md.
"""

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax

from sop.command import Parser, count, disk_folder, run
from sop.config.command_line import add_config
from sop.errors import UsageError
from sop.sweep.grid import parse_grid
from sop.sweep.plan import Run, Sweep, refuse_unfit
from sop.sweep.progress import FAILURE, Progress, forget_failures, progress, result
from sop.sweep.runner import execute
from sop.sweep.tuning import Tuning, make_tuning, phases


def make_parser() -> Parser:
    """The flags of this command."""
    parser = Parser(prog="python -m sop.sweep", description=__doc__)
    add_config(parser)
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=v1,v2",
        help="values of a key to go through; may be given often",
    )
    parser.add_argument("--seeds", type=count(10**4), default=1, metavar="N", help="default: 1")
    parser.add_argument(
        "--tune",
        action="append",
        default=[],
        metavar="KEY=v1,v2",
        help="values of a key to choose from for each method; may be given often",
    )
    parser.add_argument(
        "--validation",
        metavar="TRAIN,VALIDATION",
        help="splits to tune on; default: 80 %% and 20 %% of the training split",
    )
    parser.add_argument("--workdir", type=disk_folder, required=True, metavar="DIR")
    parser.add_argument(
        "--jobs", type=count(10**4), default=1, metavar="N", help="runs at a time, one on each GPU"
    )
    parser.add_argument("--retry", action="store_true", help="start failed runs again")
    parser.add_argument(
        "--print", action="store_true", help="print a command for each run that is left, no more"
    )
    return parser


def plan_of(arguments: Sequence[str]) -> tuple[Sweep, Tuning | None, Namespace]:
    """The sweep that a command line means, its tuning, and the flags.

    Raises:
      UsageError: it cannot be meant.
    """
    fixed = tuple(each for each in arguments if each.startswith("--config."))
    options = make_parser().parse_args([each for each in arguments if each not in fixed])
    grids = tuple(map(parse_grid, options.grid))
    sweep = Sweep(options.config, fixed, grids, options.seeds, Path(options.workdir))
    if options.tune:
        tuned = tuple(map(parse_grid, options.tune))
        return sweep, make_tuning(sweep, tuned, options.validation), options
    if options.validation:
        raise UsageError("--validation belongs to --tune: add --tune='optimizer.learning_rate=…'.")
    return sweep, None, options


def main(arguments: Sequence[str]) -> None:
    jax.config.update("jax_platforms", "cpu")  # the devices are for the runs
    sweep, tuning, options = plan_of(arguments)
    for runs in phases(sweep, tuning, result):
        refuse_unfit(runs)
        if not _work(runs, options):
            break


def _work(runs: Sequence[Run], options: Namespace) -> bool:
    """Starts, or prints, what is left; whether the runs that follow can begin."""
    if options.retry:
        forget_failures([run for run in runs if progress(run) is Progress.FAILED])
    states = [progress(run) for run in runs]
    if options.print:
        left = [run for run, state in zip(runs, states, strict=True) if state is Progress.LEFT]
        print(*left, sep="\n", end="\n" if left else "")
    else:
        counts = Counter(states)
        shares = ", ".join(f"{counts[state]} {state}" for state in Progress if counts[state])
        print(f"{len(runs)} run(s) in {runs[0].workdir.parent}: {shares}", flush=True)
        execute(runs, options.jobs)
        states = [progress(run) for run in runs]
    if failed := states.count(Progress.FAILED):
        places = runs[0].workdir.parent / "*" / FAILURE
        print(f"{failed} failed: {places} say why; --retry starts them again.", file=sys.stderr)
    return not {Progress.LEFT, Progress.RUNNING} & set(states)


if __name__ == "__main__":
    run(main)
