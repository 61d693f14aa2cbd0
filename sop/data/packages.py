"""Packages that carry data sets, imported when their data are prepared."""

import importlib
from typing import Any

from sop.errors import UsageError


def import_carrier(module: str, dataset: str) -> Any:
    """The module `module`, of a package that carries the data set named `dataset`.

    Raises:
      UsageError: The package, or one that it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = error.name or module.partition(".")[0]
        raise UsageError(
            f"Preparing {dataset!r} needs {package}; install it with `pip install -e '.[sets]'`."
        ) from error
