"""The folder that `python -m sop.export` writes: how it is read back."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from sop import torch_weights
from sop.errors import UsageError
from sop.training.storage import locate
from sop.training.workdir import run_config

WEIGHTS, FACTS, PROGRAM = "model.safetensors", "export.json", "model.stablehlo"


def is_export(path: str | os.PathLike) -> bool:
    """Whether a run was exported to this folder."""
    return (locate(path) / FACTS).is_file() and (locate(path) / WEIGHTS).is_file()


def to_tensors(variables: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Variables of a config.model under the names of the original's PyTorch code.

    Under their paths, 'params/features/conv1/kernel', where it is a detector without known names.
    """
    if torch_weights.has_names(model):
        return torch_weights.to_state_dict(variables, model)
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    return {path: np.asarray(x) for path, x in flat.items()}


def _from_tensors(tensors: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    if torch_weights.has_names(model):
        return torch_weights.convert(tensors, model)
    return traverse_util.unflatten_dict({k: np.asarray(x) for k, x in tensors.items()}, sep="/")


def read_export(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """(variables as NumPy arrays, facts: 'step', 'epoch', 'class_names', …) of an exported run.

    Raises:
      UsageError: a file of it is missing or damaged, or safetensors is not installed.
    """
    file = locate(path) / FACTS
    try:
        facts = json.loads(file.read_bytes())
        _ = facts["step"], facts["epoch"], facts["class_names"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} cannot be read ({error}): export the run again.") from error
    tensors = torch_weights.read(locate(path) / WEIGHTS)
    return _from_tensors(tensors, run_config(path).model), facts
