"""What a network computes on the way: its stages, the representation, the logits."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from sop.errors import UsageError
from sop.models import create_model, get_backbone
from sop.models.catalogue import stride
from sop.models.network import Network

_FEATURES = "features"
# Of ResNets, wide ones, ConvNeXt.
_STAGE = re.compile(r"((?:layer|block|stage)\d+)_(?:layer_)?\d+")


class Features(NamedTuple):
    """What one forward pass gives.

    Attributes:
      stages: name → [B, h, w, c], or tokens [B, n, c]; see `features`, and `pyramid` for their
        order.
      representation: [B, D], float32.
      logits: [B, K], float32.
    """

    stages: dict[str, jax.Array]
    representation: jax.Array
    logits: jax.Array


class Level(NamedTuple):
    """One level of the pyramid of a network's stages.

    Attributes:
      stride: pixels from one of its positions to the next.
      channels: of its map.
    """

    stride: int
    channels: int


def features(network: Network, variables: Any, images: jax.Array) -> Features:
    """A forward pass in evaluation that keeps its stages; jit-compile and differentiate it freely.

    Stages are the numbered ones where a network has them ('layer1' … 'layer4' of ResNets: what
    their last blocks put out). In other networks a stage is what the last module put out before the
    resolution falls, and carries that module's name; the last one is the feature map itself. The
    tokens of a transformer are one stage.

    Args:
      network: of `sop.models.create_model`.
      variables: of it.
      images: [B, H, W, 3], normalised.
    Raises:
      UsageError: as `network`.

    >>> network = create_model({"backbone": "resnet8_cifar", "num_classes": 10})
    >>> images = jnp.zeros((2, 32, 32, 3))
    >>> variables = network.init(jax.random.key(0), images, train=False)
    >>> {name: x.shape for name, x in features(network, variables, images).stages.items()}
    {'layer1': (2, 32, 32, 16), 'layer2': (2, 16, 16, 32), 'layer3': (2, 8, 8, 64)}
    """
    called: list[str] = []

    def is_wanted(module: nn.Module) -> bool:
        if len(module.path) == 2 and module.path[0] == _FEATURES:
            called.append(module.path[1])
            return True
        return module.path in ((_FEATURES,), ("representation",))

    logits, values = outputs(network, variables, images, is_wanted)
    inner = {name: values[f"{_FEATURES}/{name}"] for name in dict.fromkeys(called)}
    stages = _stages({name: x for name, x in inner.items() if getattr(x, "ndim", 0) == 4})
    last = next(reversed(stages), _FEATURES)
    stages[last] = values[_FEATURES]
    return Features(stages, values["representation"], logits)


def outputs(
    network: nn.Module, variables: Any, images: jax.Array, is_wanted: Callable[[nn.Module], bool]
) -> tuple[jax.Array, dict[str, Any]]:
    """Logits in evaluation, and what the modules put out that are wanted, by their paths.

    A module that is called more than once gives the output of its last call. `is_wanted` is asked
    at the end of each call.
    """
    logits, found = network.apply(
        variables,
        images,
        train=False,
        capture_intermediates=lambda module, name: name == "__call__" and is_wanted(module),
        mutable=["intermediates"],
    )
    values = flatten_dict(found["intermediates"], sep="/")
    calls = {path: value[-1] for path, value in values.items() if path.endswith("__call__")}
    return logits, {path.removesuffix("__call__").rstrip("/"): y for path, y in calls.items()}


def stages(module: nn.Module, images: jax.Array, train: bool) -> dict[str, jax.Array]:
    """The stages of a features module, by name, for a module that holds it; see `features`.

    Args:
      module: bound, as a field of another module in its `__call__`.
    """
    found = {}

    def keep(call, args, kwargs, context):
        y = call(*args, **kwargs)
        path = context.module.path
        if context.method_name == "__call__" and path[:-1] == module.path:
            found[path[-1]] = y
        return y

    with nn.intercept_methods(keep):
        last = module(images, train)
    maps = _stages({name: x for name, x in found.items() if getattr(x, "ndim", 0) == 4})
    return {**maps, next(reversed(maps), _FEATURES): last}


def _stages(maps: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The last map of each numbered stage, or else of each resolution."""
    numbered = {name: _STAGE.fullmatch(name) for name in maps}
    if any(numbered.values()):
        return {found[1]: maps[name] for name, found in numbered.items() if found}
    last: dict[tuple[int, ...], str] = {}
    for name, x in maps.items():
        last[x.shape[1:3]] = name
    return {name: maps[name] for name in last.values()}


def pyramid(config: Mapping[str, Any], image_size: int | None = None) -> dict[str, Level]:
    """The stages of the network of a config.model, finest first, without computing anything.

    Args:
      config: see `sop.models.create_model`.
      image_size: height and width of the images; None: those it was published for.
    Raises:
      UsageError: as `create_model`, or the images are too small.

    >>> pyramid({"backbone": "resnet50", "num_classes": 1000})["layer4"]
    Level(stride=32, channels=2048)
    """
    network, size = create_model(config), image_size or get_backbone(config).image_size
    if size < 1:
        raise UsageError(f"image_size is {size}: give a number of pixels.")
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), images)
    found = jax.eval_shape(partial(features, network), variables, images).stages
    # A dict that comes out of a transformation has its names in alphabetical order.
    names = sorted(found, key=lambda name: (-found[name].shape[1], name))
    return {name: Level(stride(size, found[name]), found[name].shape[-1]) for name in names}
