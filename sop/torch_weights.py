"""PyTorch state dicts ↔ Flax variables.

    python -m sop.torch_weights FILE --config=configs/NAME.py --workdir=DIR [--allow-missing=REGEX]

Each parameter's path in the Flax network is turned into the name that the original gives it, by
rules (regular expression, replacement) applied in order. Both directions use the same names:
`convert` looks them up in a file, whose own spellings are first brought to these names by the
family's aliases; `to_state_dict` writes them.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from flax import traverse_util
from ml_collections import config_flags

import sop.layers
from sop.errors import UsageError
from sop.models import create_model
from sop.models.inception import STAGES, STEM
from sop.models.parts import entry
from sop.models.squeezenet import VERSIONS
from sop.models.vgg import STAGE_SIZES
from sop.training.checkpoints import save_variables
from sop.training.config import parse_flags

Rules = tuple[tuple[str, str], ...]
HEAD = "params/classifier/kernel"


@dataclasses.dataclass(frozen=True)
class Family:
    """How one family of networks is named in PyTorch.

    Attributes:
      names: Flax path ('features/layer1_0/conv1') → the original's name.
      aliases: other spellings in published files → the original's name.
      unused: names that the forward pass in evaluation never reads.
    """

    names: Rules = ()
    aliases: Rules = ()
    unused: tuple[str, ...] = ()


# Places in GFGP's path from features to λ, which its original numbers.
GFGP_NUMBERS = {"squeeze": 1, "squeeze_norm": 2, "excite": 4, "excite_norm": 5}

# Inside a layer of sop.layers; 'attention', 'pool…' and 'representation' are where it stands.
LAYERS: Rules = (
    (r"\battention/channel_conv\b", "dilate_conv_for_concat1"),
    (r"\battention/position_conv\b", "dilate_conv_for_concat2"),
    (r"\battention/concat_norm\b", "bn_for_concat"),
    (r"\battention/channel/reduce\b", "conv_for_DR"),
    (r"\battention/channel/reduce_norm\b", "bn_for_DR"),
    (r"\battention/channel/row_norm\b", "row_bn"),
    (r"\battention/channel/row_conv\b", "row_conv_group"),
    (r"\battention/channel/expand\b", "fc_adapt_channels"),
    (r"\battention/position/reduce\b", "conv_for_DR_spatial"),
    (r"\battention/position/reduce_norm\b", "bn_for_DR_spatial"),
    (r"\battention/position/row_norm\b", "row_bn_for_spatial"),
    (r"\battention/position/row_conv\b", "row_conv_group_for_spatial"),
    (r"\battention/position/expand\b", "fc_adapt_channels_for_spatial"),
    (r"\battention/reduce\b", "attention.conv1.0"),
    (r"\battention/reduce_norm\b", "attention.conv1.1"),
    (r"\battention/row_conv\b", "attention.row_wise_conv.0"),
    (r"\battention/row_norm\b", "attention.row_wise_conv.1"),
    (r"\battention/expand\b", "attention.conv2.0"),
    (r"\battention/expand_norm\b", "attention.conv2.1"),
    *((rf"\b(pool\w*)/{place}\b", rf"\1.ToParam.{i}") for place, i in GFGP_NUMBERS.items()),
    (r"\brepresentation/reduce\b", "representation.conv_dr_block.0"),
    (r"\brepresentation/reduce_norm\b", "representation.conv_dr_block.1"),
)

LEAVES: Rules = (
    (r"/(kernel|scale)$", ".weight"),
    (r"/mean$", ".running_mean"),
    (r"/var$", ".running_var"),
    (r"/", "."),
)

RESNET = Family(
    names=(
        (r"^representation/reduce\b", "layer_reduce"),
        (r"^representation/reduce_norm\b", "layer_reduce_bn"),
        (r"^features/", ""),
        (r"^classifier\b", "fc"),
        (r"^layer(\d)_(\d+)", r"layer\1.\2"),
        (r"\bdownsample_(\d)", r"downsample.\1"),
    ),
    # fast-MPN-COV takes the network apart and numbers its children.
    aliases=(
        (r"^features\.0\.", "conv1."),
        (r"^features\.1\.", "bn1."),
        (r"^features\.4\.", "layer1."),
        (r"^features\.5\.", "layer2."),
        (r"^features\.6\.", "layer3."),
        (r"^features\.7\.", "layer4."),
        (r"^(features\.8|representation\.conv_dr_block\.0)\.", "layer_reduce."),
        (r"^(features\.9|representation\.conv_dr_block\.1)\.", "layer_reduce_bn."),
        (r"^classifier\.", "fc."),
    ),
)
CIFAR_RESNET = Family(names=RESNET.names, unused=(r"^layer\d\.\d+\.scale$",))
WIDE_RESNET = Family(
    names=(
        (r"^features/", ""),
        (r"^classifier\b", "fc"),
        (r"^block(\d)_layer_(\d+)", r"block\1.layer.\2"),
    )
)

DENSENET = Family(
    # Early files separate the number by a dot.
    aliases=((r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),),
)
MOBILENET = Family(
    names=(
        (r"^features/", ""),
        (r"^classifier\b", "linear"),
        (r"^layers_(\d+)", r"layers.\1"),
    )
)
INCEPTION = Family(
    names=((r"^features/", ""), (r"^classifier\b", "fc")),
    aliases=(
        *(
            (rf"^features\.{number}\.", f"{name}.")
            for number, name in enumerate(
                [step[0] for step in STEM] + [block[0] for stage in STAGES for block in stage]
            )
        ),
        (r"^classifier\.", "fc."),
    ),
    unused=(r"^AuxLogits\.",),
)


def numbered(features: Iterable[tuple], classifier: Iterable[tuple]) -> Family:
    """A family whose original numbers its layers: (place in Flax, number) of both parts."""
    names = [(rf"^features/{place}\b", f"features.{number}") for place, number in features]
    names += [(rf"^classifier/{place}\b", f"classifier.{number}") for place, number in classifier]
    return Family(names=tuple(names))


def vgg_family(depth: int, norm: bool) -> Family:
    """conv, norm if any and ReLU count as layers, and so do the poolings and 'conv6' of VGG-mod."""
    places, number = [], 0
    for stage, size in enumerate(STAGE_SIZES[depth], 1):
        for index in range(1, size + 1):
            places.append((f"conv{stage}_{index}/conv", number))
            places.append((f"conv{stage}_{index}/bn", number + 1))
            number += 3 if norm else 2
        for place, inner in GFGP_NUMBERS.items():
            places.append((f"pool{stage}/{place}", f"{number}.ToParam.{inner}"))
        number += 1
    # In VGG-mod it stands in place of the last pooling.
    places += [("conv6/conv", number - 1), ("conv6/bn", number)]
    layers = [(f"fc{i}", 3 * (i - 1)) for i in (1, 2, 3)] + [("bn1", 1), ("bn2", 4)]
    return numbered(places, layers)


def squeezenet_family(version: str) -> Family:
    """conv1 and its ReLU, then a pooling before each group of Fire modules."""
    places, number, fire = [("conv1", 0)], 2, 2
    for group in VERSIONS[version][2]:
        for offset in range(1, len(group) + 1):
            places.append((f"fire{fire}", number + offset))
            fire += 1
        number += len(group) + 1
    return numbered(places, [("conv10", 1)])


# conv and ReLU count as layers, and so do the poolings after conv1 and conv2.
ALEXNET = numbered(
    [(f"conv{i}/conv", number) for i, number in enumerate((0, 3, 6, 8, 10), 1)],
    [("fc1", 1), ("fc2", 4), ("fc3", 6)],
)

# Backbone name → family.
FAMILIES = {
    r"resnet\d+|resnext.*": RESNET,
    r"(pre)?resnet\d+_cifar": CIFAR_RESNET,
    r"wrn.*": WIDE_RESNET,
    **{f"vgg{depth}": vgg_family(depth, norm=False) for depth in STAGE_SIZES},
    **{rf"vgg{depth}_\w+": vgg_family(depth, norm=True) for depth in STAGE_SIZES},
    r"densenet\d+": DENSENET,
    r"mobilenet": MOBILENET,
    r"squeezenet1_0": squeezenet_family("1.0"),
    r"squeezenet1_1": squeezenet_family("1.1"),
    r"alexnet": ALEXNET,
    r"inception_v3": INCEPTION,
}


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
    model = create_model(config)
    family = family_of(config["backbone"])
    published = published_constants(model)
    tensors = {torch_name(path, family): value for path, value in published.items()}
    tensors |= canonical(unwrapped(state_dict), family)
    wanted = leaves(model)
    paths = {torch_name(path, family): path for path in wanted}
    shapes = {name: torch_shape(path, wanted[path].shape) for name, path in paths.items()}
    missing = [name for name in paths if name not in tensors]
    misshapen = [name for name in paths if name in tensors and tensors[name].shape != shapes[name]]
    left_over = [name for name in tensors if name not in paths]

    allowed = [compiled(pattern) for pattern in (*family.unused, *allow_missing)]

    def is_allowed(name):
        return any(pattern.search(name) for pattern in allowed)

    def refused(names, phrase):
        return [phrase(n) for n in names if not is_allowed(n) and not is_allowed(paths.get(n, n))]

    refuse(
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
    if gsop_net2(model, config) and HEAD in values:
        values[HEAD] = values[HEAD][columns_by_rows(len(values[HEAD]))]
    for path in published.keys() & values.keys():
        check_hash(path, values[path], model.representation.projected_dim)
    values |= initial(model, [paths[name] for name in fresh])
    return Conversion(
        traverse_util.unflatten_dict(values, sep="/"), [*left_over, *misshapen], fresh
    )


def compiled(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"allow_missing '{pattern}' is no regular expression: {error}; escape what stands for "
            f"itself with a backslash."
        ) from error


def to_state_dict(variables: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The way back: variables of `create_model(config)` under the original's names and layouts.

    The hashes and signs of compact bilinear pooling, which the original does not save, are
    'representation.hash_1', 'representation.sign_1' and so on; `convert` finds them there again.
    """
    family = family_of(config["backbone"])
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    flat = {path: np.asarray(x) for path, x in flat.items()}
    if gsop_net2(create_model(config), config):
        flat[HEAD] = flat[HEAD][np.argsort(columns_by_rows(len(flat[HEAD])))]
    return {torch_name(path, family): to_torch(path, value) for path, value in flat.items()}


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
    for path, like in traverse_util.flatten_dict(shapes, sep="/").items():
        collection, _, rest = path.partition("/")
        name = torch_name(f"{collection}/{place}/{rest}", Family()).removeprefix(f"{place}.")
        variables[path] = to_flax(path, as_array(state_dict[name]), like.shape)
        names.add(name)
    if names != set(state_dict):
        raise ValueError(f"{type(layer).__name__} does not use {sorted(set(state_dict) - names)}.")
    return traverse_util.unflatten_dict(variables, sep="/")


def family_of(backbone: str) -> Family:
    for pattern, family in FAMILIES.items():
        if re.fullmatch(pattern, backbone):
            return family
    raise UsageError(f"There are no rules for PyTorch weights of '{backbone}'.")


def unwrapped(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict in a checkpoint, without the 'module.' of DataParallel and BN's counters."""
    while isinstance(state_dict.get("state_dict"), Mapping):
        state_dict = state_dict["state_dict"]
    for name, value in state_dict.items():
        if not hasattr(value, "shape"):
            raise UsageError(
                f"'{name}' is {type(value).__name__}, not a tensor; give a state dict, or a "
                f"checkpoint that has it under 'state_dict'."
            )
    return {
        re.sub(r"(^|\.)module\.", r"\1", name): as_array(value)
        for name, value in state_dict.items()
        if not name.endswith("num_batches_tracked")
    }


def canonical(tensors: Mapping[str, np.ndarray], family: Family) -> dict[str, np.ndarray]:
    """The same tensors under the names of `torch_name`."""
    renamed = {}
    for name, value in tensors.items():
        new = applied(family.aliases, name)
        if new in renamed:
            raise UsageError(f"The file names one tensor twice, as '{new}' and as '{name}'.")
        renamed[new] = value
    return renamed


def applied(rules: Rules, name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def torch_name(path: str, family: Family) -> str:
    """'params/features/layer1_0/conv1/kernel' → 'layer1.0.conv1.weight'."""
    return applied((*family.names, *LAYERS, *LEAVES), path.partition("/")[2])


def leaves(model: nn.Module) -> dict[str, jax.ShapeDtypeStruct]:
    """Path 'params/…/kernel' → shape and dtype of every variable."""
    shapes = jax.eval_shape(lambda: start(model))
    return traverse_util.flatten_dict(shapes, sep="/")


def start(model: nn.Module) -> dict[str, Any]:
    images = jnp.zeros((1, model.image_size, model.image_size, 3))
    return model.init(jax.random.key(0), images, train=False)


def initial(model: nn.Module, paths: list[str]) -> dict[str, np.ndarray]:
    """What a new network starts with at these paths; nothing else of it is computed."""
    if not paths:
        return {}

    @jax.jit
    def chosen():
        flat = traverse_util.flatten_dict(start(model), sep="/")
        return {path: flat[path] for path in paths}

    return jax.tree.map(np.asarray, chosen())


def published_constants(model: nn.Module) -> dict[str, np.ndarray]:
    """The sketches of compact bilinear pooling, which no published state dict holds.

    The original draws them by `torch.randint` after `torch.manual_seed(1)`: successive outputs of
    the Mersenne twister modulo the range, both hashes first, then both signs.
    """
    flat = {path: leaf for path, leaf in leaves(model).items() if path.startswith("constants/")}
    if not flat:
        return {}
    projected_dim = model.representation.projected_dim
    twister = np.random.RandomState(1)._bit_generator
    drawn = {
        end: twister.random_raw(next(iter(flat.values())).shape[0])
        for end in ("hash_1", "hash_2", "sign_1", "sign_2")
    }
    return {
        path: (
            drawn[end] % projected_dim if end.startswith("hash") else drawn[end] % 2 * 2.0 - 1.0
        ).astype(like.dtype)
        for path, like in flat.items()
        for end in [path.rpartition("/")[2]]
    }


def check_hash(path: str, value: np.ndarray, projected_dim: int) -> None:
    """Refuses hashes that were drawn for more dimensions: a sketch would drop channels unseen."""
    if "/hash_" in path and value.max() >= projected_dim:
        raise UsageError(
            f"The file's {path.rpartition('/')[2]} of compact bilinear pooling goes up to "
            f"{value.max()}, but representation.projected_dim is {projected_dim}; give the number "
            f"of dimensions that the weights were trained with."
        )


def gsop_net2(model: nn.Module, config: Mapping[str, Any]) -> bool:
    """Whether the original is GSoP-Net2, which reads the upper triangle column by column."""
    name, _ = entry(config, "attention")
    covariance = isinstance(model.representation, sop.layers.MPNCOV)
    return name == "gsop" and covariance and model.representation.vectorize


def columns_by_rows(length: int) -> np.ndarray:
    """Where in the upper triangle read by columns each entry of the one read by rows stands."""
    size = math.isqrt(2 * length)
    place = np.zeros((size, size), int)
    place.T[np.tril_indices(size)] = np.arange(length)
    return place[np.triu_indices(size)]


def as_array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy()
    return np.asarray(value, np.float32)


# CGD keeps its vectors as columns and its biases as images of one pixel.
COLUMN = re.compile(r"(^|/|_)w\d?$")
BIAS_IMAGE = re.compile(r"(^|/)bias\d$")
BIAS_ROW = re.compile(r"(^|/)(height|width)_bias\d$")


def to_torch(path: str, value: np.ndarray) -> np.ndarray:
    """A Flax array in PyTorch's layout."""
    if path.endswith("/kernel"):
        return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.transpose()
    if COLUMN.search(path):
        return value[:, None]
    if BIAS_IMAGE.search(path):
        return value[None, :, None, None]
    if BIAS_ROW.search(path):
        return value[None]
    return value


def to_flax(path: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A PyTorch array in Flax's layout, of this shape."""
    if path.endswith("/kernel"):
        return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.transpose()
    return value.reshape(shape)


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return to_torch(path, np.broadcast_to(np.float32(0), shape)).shape


def refuse(backbone: str, problems: Mapping[str, list[str]]) -> None:
    """Raises UsageError if there are any, listing them."""
    found = [f"{len(each)} {what}: {', '.join(each)}" for what, each in problems.items() if each]
    if found:
        raise UsageError(
            f"The weights do not fit {backbone} and its parts ({'; '.join(found)}); choose the "
            f"config they were trained with, or allow these names with --allow-missing=REGEX."
        )


def read(path: str | Path) -> Mapping[str, Any]:
    """The state dict, or the checkpoint around it, in a .pth, .pth.tar, .pt or .safetensors file.

    Raises:
      UsageError: there is no such file, a library to read it is missing, or it is no such file; a
        pickle that would run code is not opened.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    if path.suffix == ".safetensors":
        try:
            from safetensors.numpy import load_file
        except ImportError as error:
            raise UsageError(
                f"Reading {path} needs safetensors; install it with `pip install safetensors`."
            ) from error
        try:
            return load_file(path)
        except Exception as error:
            raise UsageError(f"{path} is no safetensors file: {error}.") from error
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            f"Reading {path} needs PyTorch; install it with `pip install -e '.[weights]'`."
        ) from error
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = (
            f"asks for {found[1]}, which could run code" if found else "is damaged or no state dict"
        )
        raise UsageError(
            f"{path} is refused: it {why}; give one with a state dict alone."
        ) from error
    if not isinstance(weights, Mapping):
        raise UsageError(f"{path} holds {type(weights).__name__}, not a state dict.")
    return weights


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise UsageError("Give a file of weights: python -m sop.torch_weights FILE --config=….")
    logging.set_verbosity(logging.ERROR)  # Orbax narrates
    config = _CONFIG.value.get("model", {})
    found = conversion(read(arguments[1]), config, _ALLOW_MISSING.value)
    save_variables(_WORKDIR.value, found.variables)
    for what, names in (("not used", found.unused), ("not in the file, so new", found.fresh)):
        if names:
            print(f"{what}: {', '.join(names)}")
    count = sum(x.size for x in jax.tree.leaves(found.variables["params"]))
    print(f"{config['backbone']} with {count:,} parameters is in {_WORKDIR.value}")


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file(
        "config",
        None,
        "The experiment; --config.KEY=VALUE changes a key of it.",
        lock_config=False,
        accept_new_attributes=True,  # options of config.model.attention and the like
    )
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the checkpoint.", required=True)
    _ALLOW_MISSING = flags.DEFINE_multi_string(
        "allow-missing", [], r"Regular expression of names that may be missing, as '^fc\.'."
    )
    flags.mark_flag_as_required("config")
    try:
        app.run(main, flags_parser=partial(parse_flags, default=None, file=None, operands=1))
    except UsageError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
