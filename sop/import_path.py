"""What a config names by import path, 'package.module:name': classes and functions of users."""

import importlib
import re
from typing import Any

from sop.errors import UsageError, show

IMPORT_PATH = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*"


def is_import_path(name: str) -> bool:
    """Whether a name is written as 'package.module:name'."""
    return re.fullmatch(IMPORT_PATH, name) is not None


def import_object(what: str, name: str) -> Any:
    """What stands behind 'package.module:name'.

    Args:
      what: of what it is the name, for the message.
    Raises:
      UsageError: there is no such module, or nothing of that name in it.
    """
    path, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{what} {show(name)} cannot be imported: {error}.") from error
