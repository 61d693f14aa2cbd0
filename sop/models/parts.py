"""What a config puts into a network: attention, local pooling, norm and representation."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax

import sop.layers
from sop.checks import Count, check
from sop.errors import UsageError, show
from sop.layers.published import Published
from sop.models.attention import AttentionPlan, Stages, plan_attention
from sop.models.backbone import Backbone
from sop.models.lookup import configure, entry, find
from sop.models.network import Conv, Linear, Network

POOLS = {
    "max": sop.layers.MaxPool,
    "average": sop.layers.AveragePool,
    "skip": sop.layers.SkipPool,
    "none": sop.layers.NoPool,
    "max_entropy": sop.layers.MaxEntropyPool,
    "gfgp": sop.layers.GFGP,
}
# Set by each place where a pooling stands.
WINDOW = ("window", "strides", "padding", "ceil_mode")

# In the place of a network's batch norms.
NORMS = {"iter_norm": sop.layers.IterNorm}

REPRESENTATIONS = {
    "gavp": sop.layers.GlobalAverage,
    "max": sop.layers.GlobalMax,
    "gem": sop.layers.GeneralizedMean,
    "mpncov": sop.layers.MPNCOV,
    "gaussian": sop.layers.GaussianPooling,
    "dropcov": sop.layers.DropCov,
    "isice": sop.layers.ISICE,
    "deepbdc": sop.layers.DeepBDC,
    "mgcrp": sop.layers.MGCrP,
    "moment_probing": sop.layers.MomentProbing,
    "bcnn": sop.layers.BilinearCNN,
    "compact_bilinear": sop.layers.CompactBilinear,
}


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a constructor of a network is given.

    Attributes:
      backbone: its name, for messages.
      image_size: see `Backbone`.
      num_classes: width of the logits.
      attention: an `AttentionPlan`, or None.
      pool: factory of local pooling modules, called with `window`, `strides` and, where needed,
        `padding`, `ceil_mode` and `name`; None: what the network has by itself.
      pool_name: its name in the config, for networks that change around it; None as above.
      normalize: factory of norms.
      norm_name: its name in the config; None: batch norm.
      representation: the module.
      representation_name: its name, that of the network's own where the config names none.
      asks: what the representation asks of the network.
      dtype, axis_name: compute type; mapped axis that batch norm's statistics are taken over.
      remat: see `sop.models.create_model`.
      taken: what the constructor has asked for of what not all networks have: 'norm'.
    """

    backbone: str
    image_size: int
    num_classes: int
    attention: AttentionPlan | None
    pool: Callable[..., nn.Module] | None
    pool_name: str | None
    normalize: Callable[..., nn.Module]
    norm_name: str | None
    representation: nn.Module
    representation_name: str
    asks: Published
    dtype: Any
    axis_name: str | None
    remat: bool = False
    taken: set[str] = dataclasses.field(default_factory=set)

    @property
    def strided_pool(self) -> Callable[..., nn.Module] | None:
        """`pool`, but None for 'skip', which means strided convolutions."""
        return None if self.pool_name == "skip" else self.pool

    @property
    def last_stride(self) -> int:
        """Of the last stage: what attention or representation ask for, else 2."""
        asked = [self.asks.last_stride, self.attention and self.attention.published.last_stride]
        return min((stride for stride in asked if stride), default=2)

    def stages(self, sizes: Sequence[int]) -> Stages:
        """The attention of each block; all None without attention."""
        if self.attention is None:
            return tuple((None,) * size for size in sizes)
        return self.attention.stages(sizes, self.asks.attention_in_last_stage)

    def block(self, module: Callable[..., nn.Module], **options: Any) -> Callable[..., nn.Module]:
        """A factory of the blocks that the network is a row of, called with (x, train)."""
        return partial(rematerialised(module) if self.remat else module, **options)

    def conv(self, **options: Any) -> Callable[..., nn.Module]:
        """A factory of convolutions."""
        return partial(Conv, dtype=self.dtype, **options)

    def norm(self, **options: Any) -> Callable[..., nn.Module]:
        """A factory of norms: batch norms with these options, unless the config names others."""
        self.taken.add("norm")
        return self.normalize if self.norm_name else partial(self.normalize, **options)

    def refuse_what_is_left(self) -> None:
        """Raises UsageError where the config puts in what the network has no place for."""
        if self.norm_name is not None and "norm" not in self.taken:
            raise UsageError(
                f"{self.backbone} has no batch norm in whose place {show(self.norm_name)} could "
                "stand: leave out config.model.norm."
            )

    def network(
        self, features: nn.Module, classifier: Callable[..., nn.Module] = Linear
    ) -> Network:
        """Puts the parts together.

        Args:
          features: [B,H,W,3] → [B,H',W',C], called with (images, train).
          classifier: called with num_classes and dtype → module, called with ([B,D], train).
        """
        return Network(
            features=features,
            representation=self.representation,
            classifier=classifier(num_classes=self.num_classes, dtype=self.dtype),
            backbone=self.backbone,
            image_size=self.image_size,
        )


def make_parts(
    config: Mapping[str, Any],
    backbone: Backbone,
    dtype: Any,
    axis_name: str | None = None,
    representation_axis: str | None = None,
    remat: bool = False,
) -> Parts:
    """Looks up and checks `num_classes`, `attention`, `pool`, `norm` and `representation`.

    Args: see `sop.models.create_model`.

    Raises:
      UsageError: unknown names and options, ill-typed values.
    """
    if "num_classes" not in config:
        raise UsageError("config.model needs num_classes, the number of classes.")
    check("config.model.num_classes", config["num_classes"], Count)
    context = {"dtype": dtype, "axis_name": axis_name}
    attention = plan_attention(config, **context)
    pool_name, options = entry(config, "pool")
    pool = None
    if pool_name is not None:
        module = find("pool", pool_name, POOLS)
        pool = configure("pool", pool_name, module, options, placed=WINDOW, **context)
    norm_name, options = entry(config, "norm")
    normalize: Callable[..., nn.Module] = partial(sop.layers.BatchNorm, **context)
    if norm_name is not None:
        module = find("norm", norm_name, NORMS)
        normalize = configure("norm", norm_name, module, options, placed=("scale_init",), **context)
    name, options = entry(config, "representation")
    name = name or backbone.representation
    module = find("representation", name, {**REPRESENTATIONS, **backbone.own})
    asks = getattr(module, "published", Published())
    published = {"reduction": backbone.reduction} if asks.reduces else {}
    published |= backbone.published.get(name, {})
    published |= attention.published.representation.get(name, {}) if attention else {}
    options = {**published, **options}
    return Parts(
        backbone=config["backbone"],
        image_size=backbone.image_size,
        num_classes=config["num_classes"],
        attention=attention,
        pool=pool,
        pool_name=pool_name,
        normalize=normalize,
        norm_name=norm_name,
        representation=configure(
            "representation",
            name,
            module,
            options,
            **{**context, "axis_name": representation_axis or axis_name},
        )(),
        representation_name=name,
        asks=asks,
        remat=remat,
        **context,
    )


def rematerialised(module: type[nn.Module]) -> type[nn.Module]:
    """The class of modules, called with (x, train), of which only the input is kept.

    Flax calls interceptors inside of `nn.remat`; by the call around it they see the output outside
    as well, last, which `sop.models.features.stages` needs.
    """
    inner = nn.remat(module, static_argnums=(2,))

    def __call__(self: nn.Module, x: jax.Array, train: bool) -> jax.Array:
        return inner.__call__(self, x, train)

    return type(module.__name__, (inner,), {"__call__": __call__})
