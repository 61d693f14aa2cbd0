"""The one exception that says: what was asked for cannot be done, and here is the remedy."""


class UsageError(ValueError):
    """A refusal meant for the person who launched the program.

    Its message is one sentence that names the thing and the remedy. `main.py` prints it without a
    traceback and exits with status 2; any other exception is a bug and keeps its traceback.
    """
