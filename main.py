"""Trains an experiment of a config file in a work folder, evaluates it and uses what was trained.

  --mode=train      trains in --workdir, or goes on where it stopped; --config names the experiment
  --mode=eval       evaluates a checkpoint of --workdir on the evaluation split
  --mode=predict    says what --images show: a table, files and, with labels, where it is wrong;
                    a detector draws what it finds
  --mode=visualize  draws where the network of --workdir looks in --images, and why

All but train take the config of the run in --workdir; --config.KEY=VALUE changes it.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from sop.command import Parser, count, folder, run

# All else is imported when it is needed: a flag is refused without JAX, and `run` answers signals.
MODES = ("train", "eval", "predict", "visualize")
# What only some modes take.
_FLAGS_OF = {
    "images": ("predict", "visualize"),
    "out": ("predict", "visualize"),
    "top": ("predict",),
    "against": ("visualize",),
    "layer": ("visualize",),
    "class": ("visualize",),
}
_DIGITS = Path(__file__).with_name("configs") / "digits.py"


def make_parser() -> Parser:
    """The flags of this command."""
    from sop.config.command_line import add_config

    parser = Parser(prog="main.py", description=__doc__)
    add_config(parser, default="")
    parser.add_argument(
        "--workdir",
        type=folder,
        metavar="DIR",
        help="folder of the run, also gs://BUCKET/FOLDER; must be given",
    )
    parser.add_argument("--mode", choices=MODES, default="train", help="see above")
    parser.add_argument("--checkpoint", default="best", help="to use: best, latest or a step")
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="NAME",
        help="files, folders, globs ('photos/**/*.jpg'), or a split of the data set ('split:test')",
    )
    parser.add_argument("--out", type=folder, metavar="DIR", help="folder of the results")
    parser.add_argument(
        "--top",
        type=count(10**6),
        metavar="K",
        help="likeliest classes that predict writes; default: 5",
    )
    parser.add_argument(
        "--against", type=folder, metavar="DIR", help="a second run that visualize draws beside it"
    )
    parser.add_argument(
        "--layer", metavar="NAME", help="that visualize looks at; default: see docs/using.md"
    )
    parser.add_argument(
        "--class", metavar="NAME", help="that visualize explains; default: the likeliest"
    )
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
    from sop.training.storage import locate

    options, config = parse(make_parser(), arguments, own_config)
    if options.workdir is None:  # not argparse's first: a file without :NAME lists its experiments
        raise UsageError("Name the folder of the run: --workdir=DIR.")
    _refuse_flags_of_other_modes(options)
    locate(options.workdir)  # a bucket that cannot be used is refused before time is spent
    if sys.stderr.isatty():
        print("Loading JAX …", file=sys.stderr)
    import launch
    from sop.models.lookup import is_detector

    launch.keep_compiled(config.compilation_cache)
    partners = launch.join(
        options.coordinator, options.num_processes, options.process_id, options.timeout
    )
    with launch.ends_told(partners):
        match options.mode:
            case "train":
                launch.train(config, options.workdir)
            case "eval":
                launch.evaluate(config, options.workdir, options.checkpoint)
            case "predict" if is_detector(config.model):
                from sop.detection.finding import find

                if options.top is not None:
                    raise UsageError("--top belongs to classifiers: leave it out.")
                how = {"config": config, "checkpoint": options.checkpoint, "out": options.out}
                find(options.workdir, options.images, **how)
            case "predict":
                from sop.using.predict import predict

                asked = options.images, options.top or 5, options.out
                predict(config, options.workdir, options.checkpoint, *asked)
            case "visualize":
                from sop.using.visualize import visualize

                looked = options.against, options.layer, vars(options)["class"], options.out
                visualize(config, options.workdir, options.checkpoint, options.images, *looked)


def _refuse_flags_of_other_modes(options: Namespace) -> None:
    from sop.errors import UsageError

    for flag, modes in _FLAGS_OF.items():
        if vars(options)[flag] is not None and options.mode not in modes:
            raise UsageError(
                f"--{flag} belongs to --mode={' and --mode='.join(modes)}: leave it out of "
                f"--mode={options.mode}."
            )
    if options.mode in _FLAGS_OF["images"] and not options.images:
        raise UsageError("Name the images: --images='photos/**/*.jpg', a folder or 'split:test'.")


if __name__ == "__main__":
    run(main)
