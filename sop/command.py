"""What all commands share: flags, and refusals as one sentence with exit status 2."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import logging

from sop.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Flags of a command; a wrong one raises UsageError. `--help` shows `description` as it is."""

    def __init__(self, **options):
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[0].upper()}{message[1:]}; see --help.")


def run(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Calls `main` with the command line's arguments and exits.

    A UsageError is printed on stderr, without a traceback, and ends the process with status 2; any
    other exception is a bug and keeps its traceback. Modules in the working directory can be
    imported, as a user's own layers are.
    """
    sys.path.append(os.getcwd())
    logging.set_verbosity(logging.FATAL)  # TFDS and Orbax narrate; errors they raise as well
    try:
        main(sys.argv[1:])
    except UsageError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
