"""What each parameter of a network is called in PyTorch."""

import re
from collections.abc import Mapping

import numpy as np

import sop.layers
from sop.errors import UsageError
from sop.models.backbone import Rules, TorchNames

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


def torch_name(path: str, names: TorchNames) -> str:
    """'params/features/layer1_0/conv1/kernel' → 'layer1.0.conv1.weight'."""
    return _rewrite((*_LAYERS, *names.names, *_LEAVES), path.partition("/")[2])


def canonical(tensors: Mapping[str, np.ndarray], names: TorchNames) -> dict[str, np.ndarray]:
    """A file's tensors under the names of `torch_name`.

    Raises:
      UsageError: two spellings of one name.
    """
    renamed = {}
    for name, value in tensors.items():
        new = _rewrite(names.aliases, name)
        if new in renamed:
            raise UsageError(f"The file names one tensor twice, as '{new}' and as '{name}'.")
        renamed[new] = value
    return renamed


def _rewrite(rules: Rules, name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
