"""Trains or evaluates an experiment of a config file, in a work folder."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from sop.command import Parser, folder, run

# All else is imported when it is needed: a flag is refused without JAX, and `run` answers signals.
_DIGITS = Path(__file__).with_name("configs") / "digits.py"


def make_parser() -> Parser:
    """The flags of this command."""
    from sop.config.command_line import add_config

    parser = Parser(prog="main.py", description=__doc__)
    add_config(parser, default="")
    parser.add_argument(
        "--workdir", type=folder, metavar="DIR", help="folder of the run; must be given"
    )
    parser.add_argument("--mode", choices=["train", "eval"], default="train")
    parser.add_argument("--checkpoint", default="best", help="to evaluate: best, latest or a step")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    parser.add_argument("--num_processes", type=int, metavar="N", help="processes of this run")
    parser.add_argument("--process_id", type=int, metavar="I", help="which of them, from 0")
    parser.add_argument(
        "--timeout", type=_seconds, default=300, metavar="S", help="seconds to wait for the others"
    )
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 1 <= seconds <= 1e6:
        raise ValueError
    return seconds


def own_config(options: Namespace):
    """What stands for `--config`: in training the digits, else the config of the run itself."""
    from sop.config.command_line import load

    if options.mode == "train" or options.workdir is None:
        return load(str(_DIGITS))
    from sop.training.workdir import run_config

    return run_config(options.workdir)


def main(arguments: Sequence[str]) -> None:
    from sop.config.command_line import parse
    from sop.errors import UsageError

    options, config = parse(make_parser(), arguments, own_config)
    if options.workdir is None:  # not argparse's first: a file without :NAME lists its experiments
        raise UsageError("Name the folder of the run: --workdir=DIR.")
    import launch

    partners = launch.join(
        options.coordinator, options.num_processes, options.process_id, options.timeout
    )
    with launch.ends_told(partners):
        if options.mode == "train":
            launch.train(config, options.workdir)
        else:
            launch.evaluate(config, options.workdir, options.checkpoint)


if __name__ == "__main__":
    run(main)
