"""The one exception that says: what was asked for cannot be done, and here is the remedy."""

import difflib
from collections.abc import Iterable
from typing import Any

_SHOWN = 120  # characters of a value in a message


class UsageError(ValueError):
    """An argument, option or file of the caller's that cannot be used.

    Its message is one sentence that names the thing and the remedy. Every layer and function of
    sop raises it for invalid arguments; commands print it alone and exit with status 2. Any other
    exception is a bug and keeps its traceback.
    """


def show(value: Any) -> str:
    """A value for a message: as Python writes it, shortened."""
    try:
        return shorten(repr(value))
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number of thousands of digits"


def shorten(text: str) -> str:
    """A text for a message: on one line, the middle of a long one left out."""
    text = " ".join(text.split())
    half = _SHOWN // 2
    return text if len(text) <= _SHOWN else f"{text[:half]}…{text[-half:]}"


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """ " Did you mean 'x'?" with the name closest to `name`, or "" where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" Did you mean '{close[0]}'?" if close else ""


def first_line(error: Exception) -> str:
    """'KeyError: …', what another library's exception says, shortened."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__
