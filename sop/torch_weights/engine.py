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
from sop.errors import UsageError
from sop.models import create_model
from sop.models.backbone import TorchNames
from sop.models.lookup import entry
from sop.torch_weights.files import unwrap
from sop.torch_weights.layouts import as_array, columns_by_rows, to_flax, to_torch, torch_shape
from sop.torch_weights.names import canonical, names_of, rules_of, torch_name

HEAD = "params/classifier/kernel"


class Conversion(NamedTuple):
    """Variables, and what did not come from the file or stayed there, by the original's names."""

    variables: dict[str, Any]
    unused: list[str]
    fresh: list[str]


def convert(
    state_dict: Mapping[str, Any], config: Mapping[str, Any], *, allow_missing: Iterable[str] = ()
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

    Returns:
      {'params', 'batch_stats', …}: NumPy arrays, float32.

    Raises:
      UsageError: tensors are missing, left over or of another shape (lists them), a pattern is no
        regular expression, or the config is refused by `create_model`.
    """
    found = conversion(state_dict, config, allow_missing)
    for what, names in (("Not used", found.unused), ("Not in the file, so new", found.fresh)):
        if names:
            logging.info("%s: %s.", what, ", ".join(names))
    return found.variables


def conversion(
    state_dict: Mapping[str, Any], config: Mapping[str, Any], allow_missing: Iterable[str]
) -> Conversion:
    """`convert`, with a report."""
    allow_missing = tuple(allow_missing)
    for pattern in allow_missing:
        check("allow_missing", pattern, Pattern)
    model = create_model(config)
    names = names_of(config)
    wanted = trace(model)
    paths = {torch_name(path, names): path for path in wanted}
    published = published_constants(model, wanted)
    tensors = {torch_name(path, names): value for path, value in published.items()}
    tensors |= canonical(unwrap(state_dict), names)
    shapes = {name: torch_shape(path, wanted[path].shape) for name, path in paths.items()}
    missing = [name for name in paths if name not in tensors]
    misshapen = [name for name in paths if name in tensors and tensors[name].shape != shapes[name]]
    left_over = [name for name in tensors if name not in paths]

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
            "left over": refused(left_over, lambda n: f"{n} {tensors[n].shape}"),
            "of another shape": refused(
                misshapen, lambda n: f"{n} {tensors[n].shape} instead of {shapes[n]}"
            ),
        },
    )
    fresh = [*missing, *misshapen]
    values = {
        path: to_flax(path, tensors[name], wanted[path].shape).astype(
            wanted[path].dtype, copy=False
        )
        for name, path in paths.items()
        if name not in fresh
    }
    if _reads_columns(model, config) and HEAD in values:
        values[HEAD] = values[HEAD][columns_by_rows(len(values[HEAD]))]
    for path in published.keys() & values.keys():
        _check_hash(path, values[path], model.representation.projected_dim)
    values |= _initial(model, [paths[name] for name in fresh])
    return Conversion(
        traverse_util.unflatten_dict(values, sep="/"), [*left_over, *misshapen], fresh
    )


def to_state_dict(variables: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The way back: variables of `create_model(config)` under the original's names and layouts.

    The hashes and signs of compact bilinear pooling, which the original does not save, are
    'representation.hash_1', 'representation.sign_1' and so on; `convert` finds them there again.
    """
    names = names_of(config)
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    flat = {path: np.asarray(x) for path, x in flat.items()}
    if _reads_columns(create_model(config), config):
        flat[HEAD] = flat[HEAD][np.argsort(columns_by_rows(len(flat[HEAD])))]
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
        variables[path] = to_flax(path, as_array(state_dict[name]), like.shape)
        names.add(name)
    if names != set(state_dict):
        raise ValueError(f"{type(layer).__name__} does not use {sorted(set(state_dict) - names)}.")
    return traverse_util.unflatten_dict(variables, sep="/")


def trace(model: nn.Module) -> dict[str, jax.ShapeDtypeStruct]:
    """Path 'params/…/kernel' → shape and dtype of every variable of a network."""
    shapes = jax.eval_shape(lambda: init(model))
    return traverse_util.flatten_dict(shapes, sep="/")


def init(model: nn.Module) -> dict[str, Any]:
    """Variables of a new network, for images of the size it was published for."""
    images = jnp.zeros((1, model.image_size, model.image_size, 3))
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


def _check_hash(path: str, value: np.ndarray, projected_dim: int) -> None:
    """Refuses hashes that were drawn for more dimensions: a sketch would drop channels unseen."""
    if "/hash_" in path and value.max() >= projected_dim:
        raise UsageError(
            f"The file's {path.rpartition('/')[2]} of compact bilinear pooling goes up to "
            f"{value.max()}, but representation.projected_dim is {projected_dim}; give the number "
            f"of dimensions that the weights were trained with."
        )


def _reads_columns(model: nn.Module, config: Mapping[str, Any]) -> bool:
    """Whether the original is GSoP-Net2, which reads the upper triangle column by column."""
    name, _ = entry(config, "attention")
    covariance = isinstance(model.representation, sop.layers.MPNCOV)
    return name == "gsop" and covariance and model.representation.vectorize


def _refuse(backbone: str, problems: Mapping[str, list[str]]) -> None:
    """Raises UsageError if there are any, listing them."""
    found = [f"{len(each)} {what}: {', '.join(each)}" for what, each in problems.items() if each]
    if found:
        raise UsageError(
            f"The weights do not fit {backbone} and its parts ({'; '.join(found)}); choose the "
            f"config they were trained with, or allow these names with --allow-missing=REGEX."
        )
