"""The conversion: variables of a network with the tensors of a state dict, and back."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util

import sop.layers
from sop.checks import Pattern, check
from sop.detection import create_network
from sop.errors import UsageError
from sop.models import get_backbone
from sop.models.backbone import TorchNames
from sop.models.lookup import entry
from sop.torch_weights.files import unwrap
from sop.torch_weights.layouts import to_flax, to_torch, torch_shape
from sop.torch_weights.names import canonical, names_of, rules_of, torch_name
from sop.torch_weights.tensors import Stored, shown
from sop.torch_weights.triangle import Order, columns_by_rows, likely_order

# What reads the representation: a classifier of one layer, or of several.
_READERS = ("params/classifier/kernel", "params/classifier/fc1/kernel")
_DETECTOR_SIZE = 128  # a multiple of the coarsest stride; the variables are those of any size
_LISTED = 10  # names of one kind in a refusal


class Conversion(NamedTuple):
    """Variables and a report.

    Attributes:
      variables: of the network.
      unused: what stayed in the file, by the original's names.
      fresh: what did not come from the file.
      triangle: the order in which the covariance's triangle was read; None: there is none.
      doubt: a sentence if the classifier shows another order.
    """

    variables: dict[str, Any]
    unused: list[str]
    fresh: list[str]
    triangle: Order | None
    doubt: str | None


def convert(
    state_dict: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    allow_missing: Iterable[str] = (),
    triangle: Order | None = None,
) -> dict[str, Any]:
    """Variables of `create_model(config)` with the weights of a PyTorch state dict.

    Args:
      state_dict: name → array or tensor, or a checkpoint that holds one under 'state_dict'; plain
        names of the original or of torchvision, with or without 'module.', or fast-MPN-COV's
        'features.N'. BatchNorm's 'num_batches_tracked' is ignored.
      config: a config.model.
      allow_missing: regular expressions searched in the original's names and in Flax paths:
        tensors that may be missing, left over or of another shape, as those of a new classifier;
        they keep the values that a new network starts with.
      triangle: the order in which the file's classifier meets the upper triangle of a covariance;
        None: 'columns' for GSoP-Net2, else 'rows'. A classifier that shows another order, see
        `sop.torch_weights.triangle.likely_order`, is warned of.

    Returns:
      {'params', 'batch_stats', …}: NumPy arrays, float32.

    Raises:
      UsageError: tensors are missing, left over or of another shape (lists them), are no plain
        arrays of finite real numbers, stand there twice with different values, or are variances
        below 0; a pattern is no regular expression, `triangle` is given for a network that has
        none, or the config is refused by `create_model`.
    """
    found = conversion(state_dict, config, allow_missing, triangle)
    if found.doubt:
        logging.warning(found.doubt)
    for what, names in (("Not used", found.unused), ("Not in the file, so new", found.fresh)):
        if names:
            logging.info("%s: %s.", what, ", ".join(names))
    return found.variables


def conversion(
    state_dict: Mapping[str, Any],
    config: Mapping[str, Any],
    allow_missing: Iterable[str] = (),
    triangle: Order | None = None,
    *,
    named: Order | None = None,
) -> Conversion:
    """`convert`, with a report.

    Args:
      named: the order, where `triangle` is None, that the file's name tells.
    """
    allow_missing = tuple(allow_missing)
    for pattern in allow_missing:
        check("allow_missing", pattern, Pattern)
    model = create_network(config)
    names = names_of(config)
    wanted = trace(model)
    paths = {torch_name(path, names): path for path in wanted}
    order = _order(model, config, triangle, named)
    published = published_constants(model, wanted)
    stored = {
        torch_name(path, names): [Stored.of(path, value)] for path, value in published.items()
    }
    stored |= _spellings(unwrap(state_dict), names)
    _keep_image_sizes(wanted, stored, names, config)
    shapes = {name: torch_shape(path, wanted[path].shape) for name, path in paths.items()}
    missing = [name for name in paths if name not in stored]
    others = {
        name: [each.shape for each in stored[name] if each.shape != shapes[name]]
        for name in paths
        if name in stored
    }
    misshapen = [name for name, found in others.items() if found]
    left_over = [name for name in stored if name not in paths]

    def is_allowed(name):
        allowed = (*names.unused, *allow_missing)
        either = (name, paths.get(name, name))
        return any(re.search(pattern, each) for pattern in allowed for each in either)

    def refused(names, phrase):
        return [phrase(name) for name in names if not is_allowed(name)]

    _refuse(
        config["backbone"],
        {
            "missing": refused(missing, lambda n: f"{n} {shapes[n]}"),
            "left over": refused(left_over, lambda n: f"{shown(n)} {stored[n][0].shape}"),
            "of another shape": refused(
                misshapen, lambda n: f"{n} {others[n][0]} instead of {shapes[n]}"
            ),
        },
    )
    fresh = [*missing, *misshapen]
    values = {
        path: to_flax(path, _the_one(stored[name], wanted[path].dtype), wanted[path].shape)
        for name, path in paths.items()
        if name not in fresh
    }
    for path, value in values.items():
        _check_value(path, torch_name(path, names), value, model)
    doubt = None
    for path in _READERS if order else ():
        if path in values:
            values[path] = _reorder(values[path], order)
            doubt = _doubt(torch_name(path, names), values[path], order)
    values |= _initial(model, [paths[name] for name in fresh])
    return Conversion(
        traverse_util.unflatten_dict(values, sep="/"),
        [*left_over, *misshapen],
        fresh,
        order,
        doubt,
    )


def to_state_dict(
    variables: Mapping[str, Any], config: Mapping[str, Any], *, triangle: Order | None = None
) -> dict[str, np.ndarray]:
    """The way back: variables of `create_model(config)` under the original's names and layouts.

    `triangle` is the order that the weights will be read with, see `convert`.

    The hashes and signs of compact bilinear pooling, which the original does not save, are
    'representation.hash_1', 'representation.sign_1' and so on; `convert` finds them there again.
    """
    names = names_of(config)
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    flat = {path: np.asarray(x) for path, x in flat.items()}
    order = _order(create_network(config), config, triangle)
    for path in _READERS if order else ():
        if path in flat:
            flat[path] = _reorder(flat[path], order, back=True)
    return {torch_name(path, names): to_torch(path, value) for path, value in flat.items()}


def convert_layer(
    layer: nn.Module, place: str, x: Any, state_dict: Mapping[str, Any]
) -> dict[str, Any]:
    """Variables of one layer of `sop.layers` with the parameters of its original.

    Args:
      layer: the module.
      place: what it is in a network: 'attention', 'pool' or 'representation'.
      x: an input of the shape it is made for.
      state_dict: the original's names → arrays, exactly those of the layer.
    """
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), x, train=False))
    variables, names = {}, set()
    rules = TorchNames(names=rules_of(layer))
    for path, like in traverse_util.flatten_dict(shapes, sep="/").items():
        collection, _, rest = path.partition("/")
        name = torch_name(f"{collection}/{place}/{rest}", rules).removeprefix(f"{place}.")
        stored = Stored.of(name, state_dict[name])
        variables[path] = to_flax(path, stored.array(like.dtype), like.shape)
        names.add(name)
    if names != set(state_dict):
        raise ValueError(f"{type(layer).__name__} does not use {sorted(set(state_dict) - names)}.")
    return traverse_util.unflatten_dict(variables, sep="/")


def _keep_image_sizes(wanted, stored, names, config):
    """Gives parameters that have the image's size the one that they have in the file.

    They fit runs on images of that size; in others they are resampled as `init_from` is read.
    """
    for parameter in get_backbone(config).resampled:
        path = f"params/features/{parameter}"
        want = wanted[path]
        for shape in {each.shape for each in stored.get(torch_name(path, names), ())}:
            if len(shape) == len(want.shape) and shape[-1] == want.shape[-1]:
                wanted[path] = jax.ShapeDtypeStruct(shape, want.dtype)


def trace(model: nn.Module) -> dict[str, jax.ShapeDtypeStruct]:
    """Path 'params/…/kernel' → shape and dtype of every variable of a network."""
    shapes = jax.eval_shape(lambda: init(model))
    return traverse_util.flatten_dict(shapes, sep="/")


def init(model: nn.Module) -> dict[str, Any]:
    """Variables of a new network, for images of the size it was published for."""
    size = getattr(model, "image_size", _DETECTOR_SIZE)
    images = jnp.zeros((1, size, size, 3))
    return model.init(jax.random.key(0), images, train=False)


def _initial(model: nn.Module, paths: list[str]) -> dict[str, np.ndarray]:
    """What a new network starts with at these paths; nothing else of it is computed."""
    if not paths:
        return {}

    @jax.jit
    def chosen():
        flat = traverse_util.flatten_dict(init(model), sep="/")
        return {path: flat[path] for path in paths}

    return jax.tree.map(np.asarray, chosen())


def published_constants(
    model: nn.Module, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, np.ndarray]:
    """The sketches of compact bilinear pooling, which no published state dict holds."""
    flat = {path: leaf for path, leaf in wanted.items() if path.startswith("constants/")}
    if not flat:
        return {}
    channels = next(iter(flat.values())).shape[0]
    drawn = model.representation.published_constants(channels)
    return {path: drawn[path.rpartition("/")[2]].astype(like.dtype) for path, like in flat.items()}


def _spellings(tensors: Iterable[Stored], names: TorchNames) -> dict[str, list[Stored]]:
    """The original's name → the tensors that a file has under one of its spellings."""
    spelled: dict[str, list[Stored]] = {}
    for each in tensors:
        spelled.setdefault(canonical(each.name, names), []).append(each)
    return spelled


def _the_one(spellings: list[Stored], dtype: np.dtype) -> np.ndarray:
    """The values of a tensor, which are the same under each of its names."""
    first, *others = spellings
    value = first.array(dtype)
    for each in others:
        if not np.array_equal(value, each.array(dtype)):
            raise UsageError(
                f"The file has two tensors for one, '{shown(first.name)}' and "
                f"'{shown(each.name)}', of different values; leave out one."
            )
    return value


def _check_value(path: str, name: str, value: np.ndarray, model: nn.Module) -> None:
    """Refuses values that a network would take for what they are not.

    Hashes that were drawn for more dimensions would drop channels from a sketch unseen.
    """
    if path.startswith("batch_stats/") and path.endswith("/var") and (value < 0).any():
        raise UsageError(
            f"'{name}' holds a variance of {value.min()}; give weights whose variances are not "
            f"negative."
        )
    if path.startswith("constants/") and "/hash_" in path:
        projected_dim = model.representation.projected_dim
        if value.min() < 0 or value.max() >= projected_dim:
            raise UsageError(
                f"The file's {name} of compact bilinear pooling goes from {value.min()} to "
                f"{value.max()}, but representation.projected_dim is {projected_dim}; give the "
                f"number of dimensions that the weights were trained with."
            )
    if path.startswith("constants/") and "/sign_" in path and (abs(value) != 1).any():
        raise UsageError(
            f"The file's {name} of compact bilinear pooling holds numbers other than 1 and −1."
        )


def _order(
    model: nn.Module,
    config: Mapping[str, Any],
    triangle: Order | None,
    named: Order | None = None,
) -> Order | None:
    """The order in which the original reads the upper triangle; None: there is none.

    Raises:
      UsageError: `triangle` is no order, or given where there is none.
    """
    check("triangle", triangle, Order | None)
    representation = getattr(model, "representation", None)  # a detector has none
    if not (isinstance(representation, sop.layers.MPNCOV) and representation.vectorize):
        if triangle is not None:
            raise UsageError(
                f"triangle is '{triangle}', but {config['backbone']} reads no triangle of a "
                f"covariance without representation 'mpncov'; leave it out."
            )
        return None
    attention, _ = entry(config, "attention")
    return triangle or named or ("columns" if attention == "gsop" else "rows")  # GSoP-Net2's


def _reorder(kernel: np.ndarray, order: Order, *, back: bool = False) -> np.ndarray:
    """From this order to that by rows, or back."""
    if order == "rows":
        return kernel
    place = columns_by_rows(len(kernel))
    return kernel[np.argsort(place) if back else place]


def _doubt(name: str, kernel: np.ndarray, order: Order) -> str | None:
    """A sentence if the weights look as if they had been read in the wrong order."""
    if likely_order(kernel) != "columns":
        return None
    other = "columns" if order == "rows" else "rows"
    return (
        f"'{name}' was taken for weights of a triangle read by {order}, but looks like one read by "
        f"{other}: nearly every answer will be wrong, unless you convert it again with "
        f"--triangle={other}."
    )


def _refuse(backbone: str, problems: Mapping[str, list[str]]) -> None:
    """Raises UsageError if there are any, listing the first of each kind."""
    found = [
        f"{len(each)} {what}: {', '.join(each[:_LISTED])}{', …' if len(each) > _LISTED else ''}"
        for what, each in problems.items()
        if each
    ]
    if found:
        raise UsageError(
            f"The weights do not fit {backbone} and its parts ({'; '.join(found)}); choose the "
            f"config they were trained with, or allow these names with --allow-missing=REGEX."
        )
