"""What each parameter of a network is called in PyTorch."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from sop.models import get_backbone
from sop.models.attention import ATTENTIONS
from sop.models.backbone import Rules, TorchNames
from sop.models.lookup import entry, find
from sop.models.parts import POOLS, REPRESENTATIONS

_LEAVES: Rules = (
    (r"/(kernel|scale)$", ".weight"),
    (r"/mean$", ".running_mean"),
    (r"/var$", ".running_var"),
    (r"/", "."),
)


def names_of(config: Mapping[str, Any]) -> TorchNames:
    """Those of a config.model's backbone, and of the modules that stand in it."""
    backbone = get_backbone(config)
    roles = {
        "attention": ATTENTIONS,
        "pool": POOLS,
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
    return dataclasses.replace(names, names=(*rules, *names.names))


def rules_of(module: Any) -> Rules:
    """The `torch_names` of a module or its class, see `sop.layers.published`."""
    return getattr(module, "torch_names", ())


def torch_name(path: str, names: TorchNames) -> str:
    """'params/features/layer1_0/conv1/kernel' → 'layer1.0.conv1.weight'."""
    return _rewrite((*names.names, *_LEAVES), path.partition("/")[2])


def canonical(name: str, names: TorchNames) -> str:
    """A file's name of a tensor → that of `torch_name`; 'module.' is DataParallel's."""
    return _rewrite(names.aliases, re.sub(r"(^|\.)module\.", r"\1", name))


def _rewrite(rules: Rules, name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
