"""What all commands share: flags, output, signals, and refusals as one sentence."""

import argparse
import atexit
import functools
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from sop.errors import UsageError, shorten
from sop.interruption import Interruption


class Parser(argparse.ArgumentParser):
    """Flags of a command; a wrong one raises UsageError. `--help` shows `description` as it is."""

    def __init__(self, **options):
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[0].upper()}{message[1:]}; see --help.")


def folder(text: str) -> str:
    """The type of a flag that names a folder for checkpoints."""
    if not text:
        raise argparse.ArgumentTypeError("it names no folder")
    return text


def disk_folder(text: str) -> str:
    """The same, where programs and files are used that know no buckets."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"'{shorten(text)}' is no folder of this machine's file system, which it must be here"
        )
    return folder(text)


def count(most: int) -> Callable[[str], int]:
    """The type of a flag that is a whole number from 1 to `most`."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= most):
            raise argparse.ArgumentTypeError(
                f"'{shorten(text)}' is no whole number from 1 to {most}"
            )
        return int(text)

    return parse


@functools.cache
def begin() -> None:
    """Readies the process of a command, once: from here to its end nothing gives a traceback for

    - SIGINT and SIGTERM, see `Interruption`,
    - output that cannot be written, or not in the locale's encoding.
    """
    sys.stdout, sys.stderr = (_stream(number) for number in (1, 2))
    Interruption().listen()
    atexit.register(_ignore_signals)  # the first to be registered is called last


def run(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Calls `main` with the command line's arguments and exits.

    A UsageError is printed on stderr, without a traceback, and ends the process with status 2. So
    does a file that the system does not let us use. Any other exception is a bug and keeps its
    traceback. Modules in the working directory can be imported, as a user's own layers are.
    """
    begin()
    from absl import logging  # not above, so that `begin` comes early

    logging.set_verbosity(logging.FATAL)  # TFDS and Orbax narrate, also errors that they raise
    sys.unraisablehook = _leave_out_late_writes
    try:
        for name in (directory := _working_directory(), *sys.argv[1:]):
            _refuse_undecodable(name)
        sys.path.append(directory)
        main(sys.argv[1:])
    except UsageError as error:
        _refuse(error)
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        _refuse(f"{os.fsdecode(error.filename)} cannot be used: {error.strerror}.")
    sys.exit(0)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise UsageError("The working directory was removed: change to another.") from None


def _refuse_undecodable(name: str) -> None:
    """Libraries take names of files as UTF-8, whatever the bytes are that the system keeps."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{name!r} is not text in {sys.getfilesystemencoding()}: use another name, or a locale "
            "with UTF-8."
        ) from None


def _refuse(sentence: object) -> NoReturn:
    print(sentence, file=sys.stderr)
    _discard(2)  # what libraries say about it while the process ends adds nothing
    sys.exit(2)


def _leave_out_late_writes(unraisable) -> None:
    """Not what TensorStore reports of each write that ends after its save has failed."""
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)


def _ignore_signals() -> None:
    """While the interpreter takes itself down, which would restore what they do by default."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _Stream(io.FileIO):
    """Standard output or error. When it cannot be written any more, the rest is dropped."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            _discard(self.fileno())
            if self.fileno() == 1 and not isinstance(error, BrokenPipeError):
                print(f"Standard output cannot be written: {error.strerror}.", file=sys.stderr)
            return len(data)


def _stream(number: int) -> io.TextIOWrapper:
    try:
        os.fstat(number)
    except OSError:  # closed: else the next file to be opened would take its place
        _discard(number)
    old = {1: sys.stdout, 2: sys.stderr}[number]
    encoding = old.encoding if old is not None else "utf-8"
    buffer = io.BufferedWriter(_Stream(number, "w", closefd=False))
    return io.TextIOWrapper(buffer, encoding, errors="backslashreplace", line_buffering=True)


def _discard(number: int) -> None:
    """Lets what is written on this file descriptor go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
