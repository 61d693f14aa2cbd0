"""Detection of objects: boxes, anchors, detectors on the networks of `sop.models`.

A detector is called with (images, targets=None, train=False, sizes=None) and gives its losses by
name where there are targets, else what it finds; see `SSD`, `FasterRCNN` and `MaskRCNN`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from sop import models
from sop.checks import quote
from sop.detection.rcnn import FasterRCNN, MaskRCNN
from sop.detection.ssd import SSD
from sop.errors import UsageError, did_you_mean, show
from sop.models.lookup import configure, entry, is_detector
from sop.models.resolution import chosen_options

DETECTORS = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN, "ssd": SSD}


def learned_mask_size(config: Mapping[str, Any]) -> int | None:
    """Sides of the masks that the detector of a config.model learns from; None: it learns none."""
    return getattr(DETECTORS.get(entry(config, "detector")[0]), "mask_size", None)


def create_detector(
    config: Mapping[str, Any],
    *,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    remat: bool = False,
) -> nn.Module:
    """The detector of a config.model.

    Args:
      config: `detector`, a name or a dict of `name` and its options; `num_classes`, without
        background; the rest describes the backbone, see `sop.models.create_model`.
      dtype, axis_name, remat: see there; the last is of the backbone's blocks.
    Raises:
      UsageError: as `create_model`, for an unknown detector or option of it, and for a
        representation, which a detector has no place for.
    """
    make = _factory(config, dtype=dtype, axis_name=axis_name)
    backbone = _backbone(config)
    network = models.create_model(backbone, dtype=dtype, axis_name=axis_name, remat=remat)
    return make(features=network.features, num_classes=config["num_classes"])


def create_network(config: Mapping[str, Any], **options: Any) -> nn.Module:
    """The detector or the classifier of a config.model; options as of `create_detector`."""
    return (create_detector if is_detector(config) else models.create_model)(config, **options)


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.model of a detector or a classifier with every option written out.

    Raises:
      UsageError: as `create_detector` and `sop.models.resolve`.
    """
    if not is_detector(config):
        return models.resolve(config)
    make = _factory(config)
    whole = models.resolve(_backbone(config))
    del whole["representation"]  # it takes the backbone's stages alone
    return {**whole, "detector": {"name": entry(config, "detector")[0], **chosen_options(make)}}


def _factory(config: Mapping[str, Any], **context: Any) -> Callable[..., nn.Module]:
    """A detector's class with the options of a config.model, all checked."""
    name, options = entry(config, "detector")
    if name not in DETECTORS:
        hint = did_you_mean(str(name), DETECTORS)
        raise UsageError(f"There is no detector {show(name)}.{hint} There are {quote(DETECTORS)}.")
    if entry(config, "representation")[0] is not None:
        raise UsageError(
            "A detector has no place for config.model.representation: leave it out, or leave "
            "config.model.detector out."
        )
    placed = ("features", "num_classes")
    return configure("detector", name, DETECTORS[name], options, placed=placed, **context)


def _backbone(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in ("detector", "representation")}
