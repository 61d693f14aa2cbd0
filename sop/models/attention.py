"""Attention: which blocks of a network have one, and where in the block it stands."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax

import sop.layers
from sop.checks import check, quote
from sop.errors import UsageError, show
from sop.layers.published import Published
from sop.models.lookup import accepted, configure, entry, find

ATTENTIONS = {
    "gsop": sop.layers.GSoP,
    "gsop_compact": sop.layers.CompactGSoP,
    "cgd": sop.layers.CGD,
    "cgd_spatial": sop.layers.SpatialCGD,
    "cgd_toy": sop.layers.ToyCGD,
    "se": sop.layers.SqueezeExcitation,
    "eca": sop.layers.ECA,
    "cbam": sop.layers.CBAM,
    "gc": sop.layers.GlobalContext,
    "simam": sop.layers.SimAM,
    "gct": sop.layers.GCT,
    "srm": sop.layers.SRM,
    "fcanet": sop.layers.FcaNet,
    "coordinate": sop.layers.CoordinateAttention,
}


@dataclasses.dataclass(frozen=True)
class Attention:
    """An attention as one block gets it.

    Attributes:
      make: factory of its module.
      after: 'conv', it stands after the convolution its paper names and before that one's norm; or
        'branch', at the end of the residual branch, before the shortcut is added.
      symbol: its character in `AttentionPlan.blocks`.
    """

    make: Callable[..., nn.Module]
    after: str
    symbol: str = "1"


# For each stage of a network, the attention of each of its blocks; None: no attention.
Stages = tuple[tuple[Attention | None, ...], ...]


def attend(
    attention: Attention | None, after: str, x: jax.Array, train: bool, **block: Any
) -> jax.Array:
    """Applies `attention` as submodule 'attention' if it stands after this, else returns x.

    Args:
      block: what a module may want to know of the block it stands in (`planes`).
    Raises:
      UsageError: what comes out has another shape than x.
    """
    if attention is None or attention.after != after:
        return x
    module = attention.make(**accepted(attention.make, **block), name="attention")
    y = module(x, train)
    if getattr(y, "shape", None) != x.shape:
        raise UsageError(
            f"The attention {type(module).__name__} makes {getattr(y, 'shape', type(y).__name__)} "
            f"of a map {x.shape}; choose a module that gives back the shape that it was given."
        )
    return y


@dataclasses.dataclass(frozen=True)
class AttentionPlan:
    """The attention of a config, before the network's stages are known.

    Attributes:
      name: in the config, for messages.
      make, after: see `Attention`.
      blocks: 'all', 'last' (of each stage), or one character for each block, stages separated by
        spaces: '0' none, '1' attention, others as `published.symbols` say.
      published: what the attention asks of a network.
    """

    name: str
    make: Callable[..., nn.Module]
    after: str
    blocks: str
    published: Published

    def stages(self, sizes: Sequence[int], last_stage: bool = True) -> Stages:
        """For each stage the attention of each of its blocks.

        Args:
          sizes: number of blocks of each stage.
          last_stage: False keeps 'last' out of the last stage, as in GSoP-Net2.
        """
        return tuple(tuple(map(self._of, word)) for word in self._words(sizes, last_stage))

    def _words(self, sizes, last_stage):
        last = ["0" * (size - 1) + "1" for size in sizes]
        if self.blocks == "all":
            return ["1" * size for size in sizes]
        if self.blocks == "last":
            return last if last_stage else [*last[:-1], "0" * sizes[-1]]
        words = self.blocks.split()
        if [len(word) for word in words] != list(sizes):
            raise UsageError(
                f"config.model.attention.blocks {show(self.blocks)} does not fit stages of "
                f"{tuple(sizes)} blocks; write one character per block, like '{' '.join(last)}', "
                f"or 'all' or 'last'."
            )
        return words

    def _of(self, symbol):
        symbols: dict[str, Mapping[str, Any]] = {"1": {}, **self.published.symbols}
        if symbol == "0":
            return None
        if symbol not in symbols:
            raise UsageError(
                f"config.model.attention.blocks holds {show(symbol)}; '{self.name}' knows the "
                f"characters {quote(['0', *symbols])}."
            )
        return Attention(partial(self.make, **symbols[symbol]), self.after, symbol)


def plan_attention(config: Mapping[str, Any], **context: Any) -> AttentionPlan | None:
    """The attention that a config.model asks for, if any.

    Args:
      context: what every module gets that takes it (`dtype`, `axis_name`).

    Raises:
      UsageError: unknown name or option, or ill-typed value.
    """
    name, options = entry(config, "attention")
    if name in (None, "none"):
        if options:
            raise UsageError(f"attention 'none' takes no options; remove {quote(options)}.")
        return None
    known = find("attention", name, ATTENTIONS)
    published = getattr(known, "published", Published())
    after = options.pop("after", published.after)
    blocks = options.pop("blocks", published.blocks)
    check("config.model.attention.after", after, Literal["conv", "branch"])
    check("config.model.attention.blocks", blocks, str)
    make = configure("attention", name, known, options, also=("blocks", "after"), **context)
    return AttentionPlan(name, make, after, blocks, published)
