"""Values of keys to go through, and what a combination of them is called."""

import ast
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from sop.errors import UsageError, shorten

_CLOSES = {"(": ")", "[": "]", "{": "}"}


class Grid(NamedTuple):
    """A key of a config, and its values as the command line has them."""

    key: str
    values: tuple[str, ...]


def parse_grid(text: str) -> Grid:
    """'key=v1,v2' → Grid. Commas in brackets and quotes belong to a value.

    Raises:
      UsageError: it has no key, or no value between two commas.

    >>> parse_grid("input.train_transforms=flip,pad_crop(8, 1)")
    Grid(key='input.train_transforms', values=('flip', 'pad_crop(8, 1)'))
    """
    key, _, values = text.partition("=")
    key, found = key.strip().removeprefix("config."), split_values(values)
    if not key or not all(found):
        raise UsageError(
            f"Grid '{shorten(text)}' has {'an empty value' if len(found) > 1 else 'no values'}: "
            "write --grid='key=v1,v2'."
        )
    return Grid(key, found)


def split_values(text: str) -> tuple[str, ...]:
    """The parts between commas, but for those in brackets and quotes."""
    parts = [""]
    waiting: list[str] = []  # what closes the open brackets and quotes
    for each in text:
        if waiting and waiting[-1] in "'\"":
            if each == waiting[-1]:
                waiting.pop()
        elif waiting and each == waiting[-1]:
            waiting.pop()
        elif each in "'\"":
            waiting.append(each)
        elif each in _CLOSES:
            waiting.append(_CLOSES[each])
        elif each == "," and not waiting:
            parts.append("")
            continue
        parts[-1] += each
    return tuple(part.strip() for part in parts)


def combinations(grids: Sequence[Grid]) -> Iterator[dict[str, str]]:
    """Each combination of one value for each key, the last key varying fastest."""
    for values in itertools.product(*(grid.values for grid in grids)):
        yield dict(zip((grid.key for grid in grids), values, strict=True))


def name_of(settings: Mapping[str, str]) -> str:
    """What a combination is called: a name of a folder that a reader understands.

    >>> name_of({"model.attention.name": "gsop", "input.train_split": "train[:100]"})
    'attention=gsop,train_split=train_100'
    >>> name_of({"model.representation": "{'name': 'mpncov', 'num_iters': 1}"})
    'representation=mpncov,num_iters=1'
    """
    short = [_short(key) for key in settings]
    words = []
    for key, brief in zip(settings, short, strict=True):
        label = brief if short.count(brief) == 1 else key
        words += _words(label, settings[key])
    return ",".join(words)


def _short(key: str) -> str:
    """'model.attention.name' → 'attention', 'optimizer.learning_rate' → 'learning_rate'."""
    return key.removesuffix(".name").rpartition(".")[2]


def _words(label: str, text: str) -> list[str]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, dict):
        return [f"{label}={_safe(text)}"]
    name = {label: value["name"]} if "name" in value else {}
    options = {key: each for key, each in value.items() if key != "name"}
    return [f"{key}={_safe(str(each))}" for key, each in {**name, **options}.items()]


def _safe(text: str) -> str:
    """Letters, digits and a few marks, which no shell and no file system takes for another."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("_") or "_"
