"""Transforms as text, "random_resized_crop(224) | flip", of images and of scenes alike."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any

from sop.checks import check, options_of
from sop.errors import UsageError, shorten, show
from sop.import_path import IMPORT_PATH, import_object, is_import_path

_STEP = re.compile(rf"(?:^|\|)\s*{IMPORT_PATH}")


def parse_steps(
    text: str,
    known: Mapping[str, type],
    kind: type,
    *,
    training: bool,
    name: str | None = None,
) -> tuple[Any, ...]:
    """ "a(1) | b" → transforms. In training no test-time views, in evaluation nothing random.

    Args:
      known: name → class; a user's own has an import path.
      kind: what all of them are subclasses of.
      training: for which of the two they are.
      name: key of `config.input` in messages; None: 'train_transforms' or 'eval_transforms'.

    Raises:
      UsageError: the text is ill-formed, or names or arguments do not exist.
    """
    key = f"config.input.{name or ('train' if training else 'eval') + '_transforms'}"
    if not text.strip():
        return ()
    # An import path is no Python; with a dot in the place of its colon it is, of the same length.
    readable = _STEP.sub(lambda found: found[0].replace(":", "."), text.strip())
    try:
        node = ast.parse(readable, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(
            f"{key} is {show(text)}, which cannot be read; write transforms joined by '|', such as "
            "'random_resized_crop(224) | flip'."
        ) from error
    transforms = tuple(_build(step, text.strip(), key, known, kind) for step in _steps(node))
    for place, transform in enumerate(transforms):
        called = name_of(transform, known)
        if training and transform.num_views:
            raise UsageError(
                f"{key}: {called} makes views for evaluation; remove it from training."
            )
        if not training and transform.num_draws:
            raise UsageError(f"{key}: {called} is random; evaluation takes only fixed transforms.")
        if transform.num_views and place + 1 < len(transforms):
            raise UsageError(f"{key}: {called} makes several views and must stand last.")
    return transforms


def _steps(node: ast.expr) -> list[ast.expr]:
    steps: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        steps = [*_steps(node.right), *steps]
        node = node.left
    return [node, *steps]


def _build(node: ast.expr, text: str, key: str, known: Mapping[str, type], base: type) -> Any:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    name = ast.get_source_segment(text, call.func) or ""
    kind = _find(name, key, known, base)
    try:
        positional = [ast.literal_eval(value) for value in call.args]
        named = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
        arguments = inspect.signature(kind).bind(*positional, **named).arguments
    except (TypeError, ValueError, RecursionError, MemoryError) as error:
        typed = shorten(ast.get_source_segment(text, node) or "")
        raise UsageError(f"{key}: {typed} does not fit; write {_signature(name, kind)}.") from error
    for argument, value in arguments.items():
        check(f"{key}: '{argument}' of {name}", value, options_of(kind)[argument])
    return kind(**{argument: _hashable(value) for argument, value in arguments.items()})


def _hashable(value: Any) -> Any:
    """Lists, which are as good as tuples, as these."""
    return tuple(map(_hashable, value)) if isinstance(value, tuple | list) else value


def _find(name: str, key: str, known: Mapping[str, type], base: type) -> type:
    """The transform of a name or an import path."""
    if name in known:
        return known[name]
    if not is_import_path(name):
        names = ", ".join(_signature(*each) for each in known.items())
        raise UsageError(
            f"{key}: there is no transform {show(name)}; there are {names}, or "
            "'package.module:Class' of your own."
        )
    found = import_object(f"{key}: transform", name)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UsageError(
            f"{key}: {name} is no transform; name a subclass of {base.__module__}.{base.__name__}."
        )
    frozen = dataclasses.is_dataclass(found) and found.__dataclass_params__.frozen
    if inspect.isabstract(found) or not frozen:
        raise UsageError(
            f"{key}: {name} must be a frozen dataclass with __call__ and output_size, as those of "
            f"{base.__module__} are."
        )
    return found


def name_of(transform: Any, known: Mapping[str, type]) -> str:
    """What a transform is called in a text."""
    kind = type(transform)
    return next((name for name, each in known.items() if each is kind), kind.__name__)


def _signature(name: str, kind: type) -> str:
    fields = dataclasses.fields(kind)
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    return f"{name}({', '.join(required)})" if required else name
