"""What a network file tells of each network: its constructor, and what it was published with."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import numpy as np

from sop.checks import check, hints_of
from sop.import_path import import_object
from sop.models.lookup import called_as_module

Rules = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class TorchNames:
    """What a network's parameters are called in PyTorch.

    Rules are (regular expression, replacement), applied in order.

    Attributes:
      names: Flax path ('features/layer1_0/conv1') → the original's name.
      aliases: other spellings in published files → the original's name.
      unused: expressions of names that the forward pass in evaluation never reads.
      prefix: what stands before the names of the features, where these are part of a detector.
    """

    names: Rules = ()
    aliases: Rules = ()
    unused: tuple[str, ...] = ()
    prefix: str = ""


def number_layers(
    features: Iterable[tuple[str, Any]], classifier: Iterable[tuple[str, Any]]
) -> TorchNames:
    """Names in an original that numbers its layers: (place in Flax, number) of both parts."""
    names = [(rf"^features/{place}\b", f"features.{number}") for place, number in features]
    names += [(rf"^classifier/{place}\b", f"classifier.{number}") for place, number in classifier]
    return TorchNames(names=tuple(names))


@dataclasses.dataclass(frozen=True)
class Backbone:
    """One network, or a family whose names hold its numbers ('resnet{depth}_cifar').

    Attributes:
      make: (`sop.models.parts.Parts`, options of config.model as keyword-only arguments) → Network;
        or a module of features alone, called with (images, train), whose fields are the options.
      torch_names: see `TorchNames`.
      published: name of a representation → options that it was published with in this network.
      reduction: width to which channels are reduced before second-order moments are taken.
      representation: name of the one that stands where a config names none.
      own: representations that only this network has, by name.
      image_size: height and width of the images that it was published for.
      resampled: path in the features of a parameter that has the image's size → what makes it fit
        another: (values, shape) → values of that shape.
    """

    make: Callable[..., nn.Module]
    torch_names: TorchNames = TorchNames()
    published: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    reduction: int = 256
    representation: str = "gavp"
    own: Mapping[str, Callable[..., nn.Module]] = dataclasses.field(default_factory=dict)
    image_size: int = 224
    resampled: Mapping[str, Callable[[Any, tuple[int, ...]], np.ndarray]] = dataclasses.field(
        default_factory=dict
    )


def find_backbone(name: str, known: Mapping[str, Backbone]) -> Backbone | None:
    """The entry whose key is `name`; '{depth}' in a key stands for a number, which is bound.

    Raises:
      UsageError: the number does not fit the constructor's annotation of it.
    """
    for key, backbone in known.items():
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[1-9]\\d{,8})", re.escape(key))
        if found := re.fullmatch(pattern, name):
            numbers = {each: int(value) for each, value in found.groupdict().items()}
            for each, value in numbers.items():
                check(
                    f"The {each} of backbone '{name}'",
                    value,
                    hints_of(backbone.make).get(each, int),
                )
            return dataclasses.replace(backbone, make=partial(backbone.make, **numbers))
    return None


def import_backbone(name: str) -> Backbone:
    """The `Backbone`, or the module of features, behind 'package.module:name'.

    Raises:
      UsageError: there is nothing of that name, or it is neither.
    """
    found = import_object("backbone", name)
    if isinstance(found, Backbone):
        return found
    return Backbone(called_as_module("backbone", name, found))
