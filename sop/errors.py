"""The one exception that says: what was asked for cannot be done, and here is the remedy."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """An argument, option or file of the caller's that cannot be used.

    Its message is one sentence that names the thing and the remedy. Every layer and function of
    sop raises it for invalid arguments; commands print it alone and exit with status 2. Any other
    exception is a bug and keeps its traceback.
    """


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """ " Did you mean 'x'?" with the name closest to `name`, or "" where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" Did you mean '{close[0]}'?" if close else ""
