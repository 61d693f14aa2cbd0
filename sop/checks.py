"""Values against annotations: one checker for config keys, options of modules, transforms.

A hint is what stands behind the colon of a field or an argument: a type, `float | None`,
`Literal["a", "b"]`, `tuple[float, ...]`, or `Annotated[int, at_least(1)]` with conditions that the
type alone cannot say.
"""

import dataclasses
import functools
import inspect
import numbers
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, Union

from sop.errors import UsageError, show

_LARGEST_INT = 2**31 - 1  # of int32, and of float32: what computes here
_LARGEST_FLOAT = 3.4028234663852886e38


@dataclasses.dataclass(frozen=True)
class Condition:
    """What a value must fulfil beyond its type.

    Attributes:
      holds: value → whether it does; called with values of the type alone.
      meaning: how a sentence goes on after 'must be a number'.
    """

    holds: Callable[[Any], bool]
    meaning: str


def at_least(least: float) -> Condition:
    """value ≥ least."""
    return Condition(lambda value: value >= least, f"of at least {least}")


def at_most(most: float) -> Condition:
    """value ≤ most."""
    return Condition(lambda value: value <= most, f"of at most {most}")


def within(least: float, most: float) -> Condition:
    """least ≤ value ≤ most."""
    words = (f"{each:g}" if isinstance(each, float) else str(each) for each in (least, most))
    return Condition(lambda value: least <= value <= most, "from " + " to ".join(words))


def above(bound: float) -> Condition:
    """value > bound."""
    return Condition(lambda value: value > bound, f"above {bound}")


def below(bound: float) -> Condition:
    """value < bound."""
    return Condition(lambda value: value < bound, f"below {bound}")


def _is_pattern(value: str) -> bool:
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError, MemoryError):
        return False
    return value != ""


Count = Annotated[int, within(1, _LARGEST_INT)]
NotNegative = Annotated[int, within(0, _LARGEST_INT)]
Width = Annotated[int, within(1, 2**16)]  # channels of a layer
Rate = Annotated[float, at_least(0), below(1)]
Pattern = Annotated[str, Condition(_is_pattern, "that is a regular expression and not empty")]


def check(what: str, value: Any, hint: Any, text: str | None = None) -> None:
    """Raises UsageError, '`what` is … but must be …', unless the value fits the hint.

    Whole numbers are numbers, booleans are not; both are such as int32 and float32 can hold; lists
    are as good as tuples.

    Args:
      text: what the user wrote, to be shown instead of the value.
    """
    if not fits(value, hint):
        raise UsageError(f"{what} is {text or show(value)} but must be {describe(hint)}.")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value fits a hint; what is no type, such as `Callable[…]`, fits anything."""
    if hint is Any:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        inner, *conditions = arguments
        mine = (each for each in conditions if isinstance(each, Condition))
        return fits(value, inner) and all(condition.holds(value) for condition in mine)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in arguments)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if hint is None or hint is types.NoneType:
        return value is None
    kind = origin or hint
    if kind is int:
        is_number = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return is_number and abs(value) <= _LARGEST_INT
    if kind is float:
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return is_number and abs(value) <= _LARGEST_FLOAT  # which NaN is not
    if kind is tuple:
        return isinstance(value, tuple | list) and _items_fit(value, arguments)
    return isinstance(value, kind) if isinstance(kind, type) else True


def _items_fit(value: tuple | list, hints: tuple) -> bool:
    if not hints:
        return True
    if hints[-1] is Ellipsis:
        return all(fits(item, hints[0]) for item in value)
    return len(value) == len(hints) and all(map(fits, value, hints))


def describe(hint: Any) -> str:
    """A hint in words: 'a whole number of at least 1 or None'."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        inner, *conditions = arguments
        meanings = [each.meaning for each in conditions if isinstance(each, Condition)]
        return " ".join([describe(inner), *([" and ".join(meanings)] if meanings else [])])
    if origin in (Union, types.UnionType):
        return " or ".join(map(describe, arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if hint is None or hint is types.NoneType:
        return "None"
    if origin is tuple and arguments and arguments[-1] is Ellipsis:
        return f"a tuple, each item {describe(arguments[0])}"
    if origin is tuple and arguments:
        return f"({', '.join(map(describe, arguments))})"
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "a string"}
    names |= {tuple: "a tuple", dict: "a dict"}
    kind = origin or hint
    return names.get(kind) or f"a {getattr(kind, '__name__', kind)}"


def hints_of(function: Callable) -> dict[str, Any]:
    """The annotations of a function or a class, or of what a `functools.partial` is made of."""
    while isinstance(function, functools.partial):
        function = function.func
    return typing.get_type_hints(function, include_extras=True)


def options_of(function: Callable, hidden: Iterable[str] = ()) -> dict[str, Any]:
    """Option → hint: the fields of a module or dataclass, a function's keyword-only arguments."""
    while isinstance(function, functools.partial):
        function = function.func
    is_class = isinstance(function, type)
    hints = hints_of(function)
    return {
        name: hints.get(name, Any)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in hidden and (is_class or parameter.kind is parameter.KEYWORD_ONLY)
    }


def check_options(
    what: str,
    function: Callable,
    options: Mapping[str, Any],
    *,
    hidden: Iterable[str] = (),
    also: Iterable[str] = (),
) -> None:
    """Refuses options that a module or function does not take, or of another type.

    Args:
      what: 'attention gsop'.
      function: see `options_of`.
      options: name → value.
      hidden: options of `function` that the caller sets.
      also: names to list beside those of `function` where one is unknown.
    Raises:
      UsageError: naming the option and what it may be.
    """
    known = options_of(function, hidden)
    for name, value in options.items():
        if name not in known:
            takes = quote([*known, *also]) or "none"
            raise UsageError(f"There is no option {show(name)} of {what}; it takes {takes}.")
        check(f"Option {show(name)} of {what}", value, known[name])


def check_fields(module: Any, hidden: Iterable[str] = ("parent", "name")) -> None:
    """Refuses a dataclass, such as a Flax module, a field of which does not fit its annotation."""
    kind = type(module)
    for name, hint in options_of(kind, hidden).items():
        check(f"{name} of {kind.__name__}", getattr(module, name), hint)


def quote(names: Iterable[str]) -> str:
    """'a', 'b', 'c'."""
    return ", ".join(f"'{name}'" for name in names)
