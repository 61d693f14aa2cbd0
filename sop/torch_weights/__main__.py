"""Turns a file of PyTorch weights into a checkpoint that evaluation and fine-tuning read."""

import sys
from collections.abc import Sequence
from typing import get_args

import jax

from sop.command import Parser, folder, run
from sop.config.command_line import add_config, parse
from sop.config.validation import as_json
from sop.torch_weights.engine import conversion
from sop.torch_weights.files import read
from sop.torch_weights.tensors import shown
from sop.torch_weights.triangle import Order, order_by_name
from sop.training.durable import write_json
from sop.training.storage import locate
from sop.training.variables import save_variables
from sop.training.workdir import with_whole_model


def make_parser() -> Parser:
    """The flags of this command."""
    parser = Parser(prog="python -m sop.torch_weights", description=__doc__)
    parser.add_argument("file", help=".pth, .pth.tar, .pt or .safetensors")
    add_config(parser)
    parser.add_argument(
        "--workdir", required=True, type=folder, metavar="DIR", help="folder of the checkpoint"
    )
    parser.add_argument(
        "--allow-missing",
        action="append",
        default=[],
        metavar="REGEX",
        help=r"names that may be missing, left over or of another shape, as '^fc\.'; repeatable",
    )
    parser.add_argument(
        "--triangle",
        choices=get_args(Order),
        help="order in which the classifier meets the triangle of a covariance; by default what "
        "the file's name tells, columns for GSoP-Net2, else rows",
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    options, config = parse(make_parser(), arguments)
    found = conversion(
        read(options.file),
        config.model,
        options.allow_missing,
        options.triangle,
        named=order_by_name(options.file),
    )
    save_variables(options.workdir, found.variables)
    write_json(locate(options.workdir) / "config.json", as_json(with_whole_model(config)))
    if found.doubt:
        print(found.doubt, file=sys.stderr)
    if found.triangle:
        print(f"the triangle of the covariance is read by {found.triangle}")
    for what, names in (("not used", found.unused), ("not in the file, so new", found.fresh)):
        if names:
            print(f"{what}: {', '.join(map(shown, names))}")
    count = sum(x.size for x in jax.tree.leaves(found.variables["params"]))
    print(f"{config.model.backbone} with {count:,} parameters is in {options.workdir}")


if __name__ == "__main__":
    run(main)
