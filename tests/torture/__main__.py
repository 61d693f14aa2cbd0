"""Tries to break training, evaluation, input and layers, in ways drawn from a seed.

`python -m tests.torture --minutes=M --seed=S` goes through all kinds of trials again and again
until the time is over, and prints how many were tried and survived, with a command for each
failure. It exits with 1 where there was one. `--trial=KIND:SEED` repeats one of them.
"""

import argparse
import collections
import itertools
import signal
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from tests.torture.kinds import KINDS, draw
from tests.torture.trial import Bench, Trial

_PATIENCE = 600  # seconds, the longest trials take a minute


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="those to draw from")
    parser.add_argument("--trial", metavar="KIND:SEED", help="this one alone")
    return parser


def main() -> None:
    options = make_parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        if options.trial:
            kind, _, seed = options.trial.partition(":")
            trial = draw(kind, int(seed), bench)
            print(trial.what, flush=True)
            _run(trial)
            print("Survived.")
            return
        failures = _torture(bench, options.kinds.split(","), options.seed, options.minutes * 60)
    sys.exit(bool(failures))


def _torture(bench: Bench, kinds: list[str], seed: int, seconds: float) -> list[str]:
    """Draws and runs trials until the time is over; the names of those not survived."""
    tried, survived = collections.Counter(), collections.Counter()
    failures = []
    begun = time.monotonic()
    form = "{desc} {percentage:3.0f}%|{bar}| {postfix} {remaining} left"
    bar = tqdm(total=round(seconds), bar_format=form, disable=not sys.stderr.isatty())
    for number, kind in zip(itertools.count(seed * 1_000_000), itertools.cycle(kinds)):
        gone = time.monotonic() - begun
        if gone >= seconds:
            break
        bar.update(min(round(gone), bar.total) - bar.n)
        trial = draw(kind, number, bench)
        bar.set_postfix_str(f"{tried.total()} tried, {len(failures)} failed; {trial.what[:60]}")
        tried[kind] += 1
        try:
            _run(trial)
            survived[kind] += 1
        except Exception as error:  # whatever it is, the others are tried as well
            name = f"{kind}:{number}"
            failures.append(name)
            said = f"{type(error).__name__}: {error}"[:2000]
            tqdm.write(f"FAILED --trial={name}: {trial.what}\n  {said}", file=sys.stdout)
            sys.stdout.flush()
    bar.close()
    print("\n| kind | tried | survived |\n| --- | --- | --- |")
    for kind in kinds:
        print(f"| {kind} | {tried[kind]} | {survived[kind]} |")
    rate = tried.total() / (time.monotonic() - begun) * 60
    print(f"\n{tried.total()} trials, {rate:.1f} a minute, {len(failures)} failures")
    for name in failures:
        print(f"  python -m tests.torture --trial={name}")
    return failures


def _run(trial: Trial) -> None:
    """Runs a trial that must end; what it does in this process may hang as well."""

    def give_up(number, frame):
        raise AssertionError(f"no end within {_PATIENCE} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_PATIENCE)
    try:
        trial.run()
    finally:
        signal.alarm(0)


if __name__ == "__main__":
    main()
