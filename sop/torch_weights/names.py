"""What each parameter of a network is called in PyTorch."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from sop.detection import DETECTORS
from sop.errors import UsageError, show
from sop.models import get_backbone
from sop.models.attention import ATTENTIONS
from sop.models.backbone import Rules, TorchNames
from sop.models.lookup import entry, find, is_detector
from sop.models.parts import NORMS, POOLS, REPRESENTATIONS

_LEAVES: Rules = (
    (r"/(kernel|scale)$", ".weight"),
    (r"/mean$", ".running_mean"),
    (r"/var$", ".running_var"),
    (r"/", "."),
)


def names_of(config: Mapping[str, Any]) -> TorchNames:
    """Those of a config.model's backbone, of the modules that stand in it, and of a detector.

    Raises:
      UsageError: there are none of this detector.
    """
    backbone = get_backbone(config)
    roles = {
        "attention": ATTENTIONS,
        "pool": POOLS,
        "norm": NORMS,
        "representation": {**REPRESENTATIONS, **backbone.own},
    }
    chosen = {role: entry(config, role)[0] for role in roles}
    chosen["representation"] = chosen["representation"] or backbone.representation
    rules = [
        rule
        for role, name in chosen.items()
        if name not in (None, "none")
        for rule in rules_of(find(role, name, roles[role]))
    ]
    names = backbone.torch_names
    names = dataclasses.replace(names, names=(*rules, *names.names))
    return _with_detector(names, config) if is_detector(config) else names


def has_names(config: Mapping[str, Any]) -> bool:
    """Whether the parameters of a config.model have names in PyTorch, as those of SSD have not."""
    return not is_detector(config) or _names_of_detector(entry(config, "detector")[0]) is not None


def _names_of_detector(name: str | None) -> TorchNames | None:
    return getattr(DETECTORS.get(name), "torch_names", None)


def _with_detector(features: TorchNames, config: Mapping[str, Any]) -> TorchNames:
    """The names of a detector on these features, whose files are not those of classifiers."""
    name, _ = entry(config, "detector")
    names = _names_of_detector(name)
    if names is None:
        raise UsageError(f"No PyTorch weights of the detector {show(name)} are known here.")
    return dataclasses.replace(names, names=(*names.names, *features.names), unused=features.unused)


def rules_of(module: Any) -> Rules:
    """The `torch_names` of a module or its class, see `sop.layers.published`."""
    return getattr(module, "torch_names", ())


def torch_name(path: str, names: TorchNames) -> str:
    """'params/features/layer1_0/conv1/kernel' → 'layer1.0.conv1.weight'."""
    rest = path.partition("/")[2]
    prefix = names.prefix if rest.startswith("features/") else ""
    return prefix + _rewrite((*names.names, *_LEAVES), rest)


def canonical(name: str, names: TorchNames) -> str:
    """A file's name of a tensor → that of `torch_name`; 'module.' is DataParallel's."""
    return _rewrite(names.aliases, re.sub(r"(^|\.)module\.", r"\1", name))


def _rewrite(rules: Rules, name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
