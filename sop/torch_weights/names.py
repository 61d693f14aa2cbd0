"""What each parameter of a network is called in PyTorch."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import sop.layers
from sop.models import get_backbone
from sop.models.backbone import Rules, TorchNames
from sop.models.lookup import entry, find

_LAYERS: Rules = tuple(
    rule
    for name in sop.layers.__all__
    for rule in getattr(getattr(sop.layers, name), "torch_names", ())
)
_LEAVES: Rules = (
    (r"/(kernel|scale)$", ".weight"),
    (r"/mean$", ".running_mean"),
    (r"/var$", ".running_var"),
    (r"/", "."),
)


def names_of(config: Mapping[str, Any]) -> TorchNames:
    """Those of a config.model's backbone, and of the user's own modules that stand in it."""
    backbone = get_backbone(config).torch_names
    parts = [(role, entry(config, role)[0]) for role in ("attention", "pool", "representation")]
    own = [find(role, name, {}) for role, name in parts if name and ":" in name]
    rules = [rule for module in own for rule in getattr(module, "torch_names", ())]
    return dataclasses.replace(backbone, names=(*rules, *backbone.names))


def torch_name(path: str, names: TorchNames) -> str:
    """'params/features/layer1_0/conv1/kernel' → 'layer1.0.conv1.weight'."""
    return _rewrite((*_LAYERS, *names.names, *_LEAVES), path.partition("/")[2])


def canonical(name: str, names: TorchNames) -> str:
    """A file's name of a tensor → that of `torch_name`; 'module.' is DataParallel's."""
    return _rewrite(names.aliases, re.sub(r"(^|\.)module\.", r"\1", name))


def _rewrite(rules: Rules, name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
