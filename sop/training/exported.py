"""The folder that `python -m sop.export` writes: how it is read back."""

import json
import os
from typing import Any

from sop import torch_weights
from sop.errors import UsageError
from sop.training.storage import locate
from sop.training.workdir import run_config

WEIGHTS, FACTS, PROGRAM = "model.safetensors", "export.json", "model.stablehlo"


def is_export(path: str | os.PathLike) -> bool:
    """Whether a run was exported to this folder."""
    return (locate(path) / FACTS).is_file() and (locate(path) / WEIGHTS).is_file()


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
    state_dict = torch_weights.read(locate(path) / WEIGHTS)
    return torch_weights.convert(state_dict, run_config(path).model), facts
