"""The layers of a network by name, and what they put out, by Flax's `capture_intermediates`."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sop.errors import UsageError, did_you_mean, show
from sop.models import features

_FEATURES = "features/"


def outputs(
    model: nn.Module, variables: Any, images: jax.Array, wanted: Sequence[str]
) -> dict[str, jax.Array]:
    """What the layers `wanted` put out in evaluation, by their paths; see `features.outputs`."""
    return features.outputs(
        model, variables, images, lambda module: "/".join(module.path) in wanted
    )[1]


def trace(
    model: nn.Module, variables: Any, image_shape: tuple[int, ...]
) -> dict[str, tuple[type, Any]]:
    """Every layer by its path, in the order in which they end: its class, and its output's shape.

    Outputs that are no arrays are left out, and so is the network itself.
    """
    order: list[tuple[str, type]] = []

    def note(module: nn.Module) -> bool:
        if module.path:
            order.append(("/".join(module.path), type(module)))
        return True

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    forward = partial(features.outputs, model, is_wanted=note)
    _, values = jax.eval_shape(forward, variables, images)
    return {name: (kind, values[name]) for name, kind in order if hasattr(values[name], "shape")}


def find(name: str, known: Mapping[str, Any]) -> str:
    """The path of the layer that a user calls `name`.

    'features/' may be left out, and a stage ('layer3') stands for its last block.

    Raises:
      UsageError: there is none; it lists the layers.
    """
    for path in (name, f"{_FEATURES}{name}"):
        if path in known:
            return path
    blocks = [each for each in top(known) if each.startswith(f"{name}_")]
    if blocks:
        return with_prefix(blocks[-1], known)
    short = [path.removeprefix(_FEATURES) for path in known]
    listed = ", ".join(top(known))
    raise UsageError(
        f"There is no layer {show(name)}.{did_you_mean(name, short)} There are {listed}, and those "
        f"inside them, such as {_inner(short)}."
    )


def with_prefix(short: str, known: Mapping[str, Any]) -> str:
    """The path of a layer of which 'features/' may be left out."""
    return short if short in known else f"{_FEATURES}{short}"


def top(known: Mapping[str, Any]) -> list[str]:
    """The layers that a network is made of, in order: those of the features, and what follows."""
    short = (path.removeprefix(_FEATURES) for path in known)
    return [name for name in short if not re.search("/", name)]


def _inner(short: Sequence[str]) -> str:
    inner = [name for name in short if "/" in name]
    return inner[0] if inner else short[0]
