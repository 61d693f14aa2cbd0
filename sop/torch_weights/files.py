"""State dicts in files of PyTorch and safetensors."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sop.errors import UsageError
from sop.torch_weights.layouts import as_array


def read(path: str | Path) -> Mapping[str, Any]:
    """The state dict, or the checkpoint around it, in a .pth, .pth.tar, .pt or .safetensors file.

    Raises:
      UsageError: there is no such file, a library to read it is missing, or it is no such file; a
        pickle that would run code is not opened.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    if path.suffix == ".safetensors":
        try:
            from safetensors.numpy import load_file
        except ImportError as error:
            raise UsageError(
                f"Reading {path} needs safetensors; install it with `pip install safetensors`."
            ) from error
        try:
            return load_file(path)
        except Exception as error:
            raise UsageError(f"{path} is no safetensors file: {error}.") from error
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            f"Reading {path} needs PyTorch; install it with `pip install -e '.[weights]'`."
        ) from error
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = (
            f"asks for {found[1]}, which could run code" if found else "is damaged or no state dict"
        )
        raise UsageError(
            f"{path} is refused: it {why}; give one with a state dict alone."
        ) from error
    if not isinstance(weights, Mapping):
        raise UsageError(f"{path} holds {type(weights).__name__}, not a state dict.")
    return weights


def unwrap(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a state dict, or of the checkpoint around it.

    Names lose the 'module.' of DataParallel; batch norm's counters are left out.

    Raises:
      UsageError: an entry is no tensor.
    """
    while isinstance(state_dict.get("state_dict"), Mapping):
        state_dict = state_dict["state_dict"]
    for name, value in state_dict.items():
        if not hasattr(value, "shape"):
            raise UsageError(
                f"'{name}' is {type(value).__name__}, not a tensor; give a state dict, or a "
                f"checkpoint that has it under 'state_dict'."
            )
    return {
        re.sub(r"(^|\.)module\.", r"\1", name): as_array(value)
        for name, value in state_dict.items()
        if not name.endswith("num_batches_tracked")
    }
