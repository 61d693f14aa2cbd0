"""Detection of objects: boxes, anchors, detectors on the networks of `sop.models`.

A detector is called with (images, targets=None, train=False, sizes=None) and gives its losses by
name where there are targets, else what it finds; see `SSD`, `FasterRCNN` and `MaskRCNN`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from sop.checks import quote
from sop.detection.rcnn import FasterRCNN, MaskRCNN
from sop.detection.ssd import SSD
from sop.errors import UsageError, did_you_mean, show
from sop.models import create_model
from sop.models.lookup import configure, entry, given

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
      dtype, axis_name, remat: see there.
    Raises:
      UsageError: as `create_model`, for an unknown detector or option of it, for
        rematerialisation, and for a representation, which a detector has no place for.
    """
    config = given(config)
    name, options = entry(config, "detector")
    if name not in DETECTORS:
        hint = did_you_mean(str(name), DETECTORS)
        raise UsageError(f"There is no detector {show(name)}.{hint} There are {quote(DETECTORS)}.")
    if entry(config, "representation")[0] is not None:
        raise UsageError(
            "A detector has no place for config.model.representation: leave it out, or leave "
            "config.model.detector out."
        )
    rest = {
        key: value for key, value in config.items() if key not in ("detector", "representation")
    }
    if remat:  # what a block puts out cannot be taken from inside of its rematerialisation
        raise UsageError("config.remat is not there for detectors: set it to False.")
    network = create_model(rest, dtype=dtype, axis_name=axis_name)
    placed = ("features", "num_classes")
    context = {"dtype": dtype, "axis_name": axis_name}
    make = configure("detector", name, DETECTORS[name], options, placed=placed, **context)
    return make(features=network.features, num_classes=config["num_classes"])
