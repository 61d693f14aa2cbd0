"""What a config puts into a network: attention, local pooling, representation, and their checks."""

import dataclasses
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

import sop.layers
from sop.errors import UsageError
from sop.models.network import Linear, Network

# Set by create_model or by the network itself, hence no options of a config.
RESERVED = {"parent", "name", "dtype", "axis_name"}


@dataclasses.dataclass(frozen=True)
class AttentionKind:
    """Where an attention stands by default, and what it asks of the place it gets.

    Attributes:
      module: name in `sop.layers`.
      where: 'conv', after the convolution its paper names and before that one's norm, or 'branch',
        at the end of a residual branch, before the shortcut is added.
      placement: 'all' blocks or the 'last' one of each stage.
      symbols: characters of a placement string, besides 0 and 1, and the options they stand for,
        as in the flag `attpos` of GSoP's published code.
    """

    module: str
    where: str
    placement: str
    symbols: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


GSOP = AttentionKind(
    "GSoP",
    "branch",
    "last",
    symbols={
        "2": {"manner": "position"},
        "+": {"manner": "fusion_avg"},
        "M": {"manner": "fusion_max"},
        "&": {"manner": "fusion_concat"},
    },
)
ATTENTIONS = {
    "gsop": GSOP,
    "gsop_compact": AttentionKind("CompactGSoP", "branch", "last"),
    "cgd": AttentionKind("CGD", "conv", "all"),
    "cgd_spatial": AttentionKind("SpatialCGD", "conv", "all"),
    "cgd_toy": AttentionKind("ToyCGD", "conv", "all"),
}
IMPORTED_ATTENTION = AttentionKind("", "branch", "all")

POOLS = {
    "max": "MaxPool",
    "average": "AveragePool",
    "skip": "SkipPool",
    "max_entropy": "MaxEntropyPool",
    "gfgp": "GFGP",
}
# Set by each place where a pooling stands.
WINDOW = {"window", "strides", "padding", "ceil_mode"}

REPRESENTATIONS = {
    "gavp": "GlobalAverage",
    "mpncov": "MPNCOV",
    "bcnn": "BilinearCNN",
    "compact_bilinear": "CompactBilinear",
}


@dataclasses.dataclass(frozen=True)
class Attention:
    """An attention as one block gets it: a factory, and where in the block it stands."""

    name: str
    module: Callable[..., nn.Module]
    where: str


# For each stage of a network, the attention of each of its blocks; None: no attention.
Stages = tuple[tuple[Attention | None, ...], ...]


def attend(attention: Attention | None, where: str, x, train: bool):
    """Applies `attention` as submodule 'attention' if this is `where` it stands, else returns x."""
    if attention is None or attention.where != where:
        return x
    return attention.module(name="attention")(x, train)


@dataclasses.dataclass(frozen=True)
class AttentionPlan:
    """The attention of a config: what stands where, before the network's stages are known."""

    attention: Attention
    placement: str
    kind: AttentionKind

    def blocks(self, stage_sizes, *, last_stage: bool = True) -> Stages:
        """For each stage the attention of each of its blocks.

        Args:
          stage_sizes: number of blocks of each stage.
          last_stage: False keeps placement 'last' out of the last stage, as in GSoP-Net2.
        """
        words = self._words(stage_sizes, last_stage)
        return tuple(tuple(self._of(symbol) for symbol in word) for word in words)

    def _words(self, stage_sizes, last_stage):
        last = ["0" * (size - 1) + "1" for size in stage_sizes]
        if self.placement == "all":
            return ["1" * size for size in stage_sizes]
        if self.placement == "last":
            return last if last_stage else [*last[:-1], "0" * stage_sizes[-1]]
        words = self.placement.split()
        if [len(word) for word in words] != list(stage_sizes):
            raise UsageError(
                f"attention.placement '{self.placement}' does not fit stages of "
                f"{tuple(stage_sizes)} blocks; write one character per block, like "
                f"'{' '.join(last)}', or 'all' or 'last'."
            )
        return words

    def _of(self, symbol):
        symbols = {"1": {}, **self.kind.symbols}
        if symbol == "0":
            return None
        if symbol not in symbols:
            raise UsageError(
                f"attention.placement holds '{symbol}'; '{self.attention.name}' knows the "
                f"characters {listed(['0', *symbols])}."
            )
        module = partial(self.attention.module, **symbols[symbol])
        return dataclasses.replace(self.attention, module=module)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a constructor of a network is given.

    Attributes:
      backbone: its name, for messages.
      num_classes: width of the logits.
      attention: an `AttentionPlan`, or None.
      pool: factory of local pooling modules, called with `window`, `strides` and, where needed,
        `padding`, `ceil_mode` and `name`; None: what the network has by itself.
      pool_name: its name in the config, for networks that change around it; None as above.
      strided_pool: `pool`, but None for 'skip', which means strided convolutions.
      representation_name: its name in the config; None: the network's own.
      representation_options: options that the config gives it.
      dtype, axis_name: compute type; mapped axis that BatchNorm statistics are averaged over.
    """

    backbone: str
    num_classes: int
    attention: AttentionPlan | None
    pool: Callable[..., nn.Module] | None
    pool_name: str | None
    representation_name: str | None
    representation_options: Mapping[str, Any]
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], dtype, axis_name) -> "Parts":
        """Looks up and checks the entries `attention`, `pool` and `representation`."""
        if "num_classes" not in config:
            raise UsageError("config.model needs num_classes, the number of classes.")
        check_type("config.model.num_classes", config["num_classes"], int)
        if config["num_classes"] < 1:
            raise UsageError(f"num_classes is {config['num_classes']}; give a positive number.")
        where = {"dtype": dtype, "axis_name": axis_name}
        pool_name, pool_options = entry(config, "pool")
        pool = None
        if pool_name is not None:
            module = lookup("pool", pool_name, POOLS)
            check_options(f"pool '{pool_name}'", module, pool_options, WINDOW)
            pool = fitted(module, pool_options, **where)
        name, options = entry(config, "representation")
        return cls(
            backbone=config["backbone"],
            num_classes=config["num_classes"],
            attention=attention_of(config, where),
            pool=pool,
            pool_name=pool_name,
            representation_name=name,
            representation_options=options,
            **where,
        )

    @property
    def strided_pool(self) -> Callable[..., nn.Module] | None:
        return None if self.pool_name == "skip" else self.pool

    @property
    def attention_name(self) -> str:
        return "none" if self.attention is None else self.attention.attention.name

    def blocks(self, stage_sizes, **options) -> Stages:
        """`AttentionPlan.blocks`, all None without attention."""
        if self.attention is None:
            return tuple((None,) * size for size in stage_sizes)
        return self.attention.blocks(stage_sizes, **options)

    def network(
        self,
        features: nn.Module,
        *,
        representation: str = "gavp",
        published: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({}),
        own: Mapping[str, Callable[..., nn.Module]] = types.MappingProxyType({}),
        classifier: Callable[..., nn.Module] = Linear,
        image_size: int = 224,
        min_size: int = 1,
    ) -> Network:
        """Puts the three parts together.

        Args:
          features: [B,H,W,3] → [B,H',W',C], called with (images, train).
          representation: name of the one that the network has where the config names none.
          published: representation name → options it was published with in this network; a
            config's options go before them.
          own: representations that only this network has (a flattened 7×7 map), by name.
          classifier: called with num_classes and dtype → module, called with ([B,D], train).
          image_size: height and width that the network was published for.
          min_size: smallest height and width for which every feature map has a position.
        """
        name = self.representation_name or representation
        module = lookup("representation", name, REPRESENTATIONS, own)
        options = {**published.get(name, {}), **self.representation_options}
        check_options(f"representation '{name}'", module, self.representation_options)
        return Network(
            features=features,
            representation=fitted(module, options, dtype=self.dtype, axis_name=self.axis_name)(),
            classifier=classifier(num_classes=self.num_classes, dtype=self.dtype),
            backbone=self.backbone,
            image_size=image_size,
            min_size=min_size,
        )


def attention_of(config, where) -> AttentionPlan | None:
    name, options = entry(config, "attention")
    if name in (None, "none"):
        if options:
            raise UsageError(f"attention 'none' takes no options; remove {listed(options)}.")
        return None
    module = lookup("attention", name, {key: kind.module for key, kind in ATTENTIONS.items()})
    kind = ATTENTIONS.get(name, IMPORTED_ATTENTION)
    place = {"where": kind.where, "placement": kind.placement}
    place |= {key: options.pop(key) for key in place if key in options}
    for key, value in place.items():
        check_type(f"attention.{key}", value, str)
    if place["where"] not in ("conv", "branch"):
        raise UsageError(f"attention.where is '{place['where']}'; it is 'conv' or 'branch'.")
    check_options(f"attention '{name}'", module, options, extra=tuple(place))
    attention = Attention(name, fitted(module, options, **where), place["where"])
    return AttentionPlan(attention, place["placement"], kind)


def entry(config: Mapping[str, Any], key: str) -> tuple[str | None, dict[str, Any]]:
    """The name and the options of one part; a bare name stands for {'name': name}."""
    value = config.get(key)
    if value is None:
        return None, {}
    if isinstance(value, str):
        return value, {}
    if not hasattr(value, "keys"):
        raise UsageError(
            f"config.model.{key} is {value!r}; give a name or a dict with 'name' and its options."
        )
    options = given(value)
    name = options.pop("name", None)
    if name is None and options:
        raise UsageError(f"config.model.{key} has options ({listed(options)}) but no name.")
    if name is not None:
        check_type(f"{key}.name", name, str)
    return name, options


def given(config) -> dict[str, Any]:
    """The entries that are not None, of a dict or a ConfigDict."""
    return {key: value for key, value in config.items() if value is not None}


def lookup(role: str, name: str, known: Mapping[str, str], own=types.MappingProxyType({})):
    """The module class behind a name, or behind 'package.module:Class' of the user's own."""
    if name in own:
        return own[name]
    if name in known:
        return getattr(sop.layers, known[name])
    if ":" in name:
        path, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(path), attribute)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"{role} '{name}' cannot be imported: {error}.") from error
    names = listed([*known, *own, *(["none"] if role == "attention" else [])])
    raise UsageError(
        f"There is no {role} '{name}'; there are {names}, or 'package.module:Class' of your own."
    )


def fitted(module, options, *, dtype, axis_name) -> Callable[..., nn.Module]:
    """`module` with its options, compute type and, where it takes one, `axis_name`."""
    parameters = inspect.signature(module).parameters
    where = {"dtype": dtype, "axis_name": axis_name}
    return partial(module, **options, **{k: v for k, v in where.items() if k in parameters})


def takes(function, hidden=frozenset()) -> dict[str, Any]:
    """Option name → type: a module's fields, a constructor's keyword-only arguments."""
    while isinstance(function, partial):
        function = function.func
    is_module = isinstance(function, type)
    hints = typing.get_type_hints(function)
    return {
        name: hints.get(name, Any)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in hidden | RESERVED and (is_module or parameter.kind is parameter.KEYWORD_ONLY)
    }


def check_options(what: str, function, options, hidden=frozenset(), extra=()) -> None:
    """Refuses options that `function` does not take, or of another type."""
    known = takes(function, hidden)
    for name, value in options.items():
        if name not in known:
            names = listed([*known, *extra])
            raise UsageError(f"{what} has no option '{name}'; it takes {names}.")
        check_type(f"Option '{name}' of {what}", value, known[name])


def check_type(what: str, value, hint) -> None:
    if not fits(value, hint):
        expected = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise UsageError(f"{what} is {value!r}, of type {type(value).__name__}; give {expected}.")


def fits(value, hint) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is type(None):
        return value is None
    kind = origin or hint
    if isinstance(value, bool) and kind in (int, float):
        return False
    if kind is float:
        return isinstance(value, int | float)
    if kind is tuple or kind is list:
        return isinstance(value, list | tuple)
    return isinstance(value, kind) if isinstance(kind, type) else True


def listed(names) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"


def match(name: str, table: Mapping[str, Callable]) -> Callable | None:
    """The entry whose key is `name`; '{depth}' in a key stands for an integer, then bound."""
    for key, value in table.items():
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[1-9]\\d*)", re.escape(key))
        found = re.fullmatch(pattern, name)
        if found:
            return partial(value, **{k: int(v) for k, v in found.groupdict().items()})
    return None
