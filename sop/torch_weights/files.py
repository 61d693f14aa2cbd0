"""State dicts in files of PyTorch and safetensors."""

import os
import re
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sop.errors import UsageError
from sop.torch_weights.tensors import Stored, shown

# Four times what the largest network here takes with an optimizer's state.
_LARGEST = 4 * 2**30
_SAFETENSORS_TYPES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
}


def read(path: str | Path) -> Mapping[str, Any]:
    """The state dict, or the checkpoint around it, in a .pth, .pth.tar, .pt or .safetensors file.

    Tensors stay in the file until they are used, but for those in PyTorch's format before 1.6, so
    the file must not be written to meanwhile. `convert` copies those that it uses.

    Raises:
      UsageError: there is no such file, a library to read it is missing, or it is no such file, is
        damaged or, but for .safetensors, larger than 4 GiB; a pickle that would run code is not
        opened, nor are compressed parts, which PyTorch does not write.
    """
    path = Path(path)
    try:
        found = os.stat(path)
        is_file = stat.S_ISREG(found.st_mode)  # opening a pipe would wait
        head = path.open("rb").read(4) if is_file else b""
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {path}.") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from error
    if not is_file:
        raise UsageError(f"{path} is no file; give one with a state dict.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_pickle(path, found.st_size, is_zip=head == b"PK\3\4")


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise UsageError(
            f"Reading {path} needs safetensors; install it with `pip install safetensors`."
        ) from error
    try:
        file = safe_open(path, framework="np")
        return {name: _Slice(file, name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise UsageError(f"{path} is no safetensors file: {shown(str(error))}.") from error


class _Slice:
    """A tensor in a safetensors file."""

    def __init__(self, file: Any, name: str):
        self._file, self._name = file, name
        found = file.get_slice(name)
        self.shape = tuple(found.get_shape())
        self.dtype = _SAFETENSORS_TYPES.get(found.get_dtype(), found.get_dtype())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._file.get_tensor(self._name), dtype)


def _read_pickle(path: Path, size: int, *, is_zip: bool) -> Mapping[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            f"Reading {path} needs PyTorch; install it with `pip install -e '.[weights]'`."
        ) from error
    if size > _LARGEST:
        raise UsageError(
            f"{path} has {size / 2**30:,.1f} GiB, more than any checkpoint of these networks; give "
            f"one with the weights alone."
        )
    try:
        if is_zip:
            _check_zip(path, size)
        # Mapped, an array takes memory when it is used, and a false size none at all.
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except UsageError:
        raise
    except Exception as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        asks = f"asks for {found[1]}, which could run code" if found else None
        raise _refusal(path, asks or "is damaged or no state dict") from error
    if not isinstance(weights, Mapping):
        raise UsageError(f"{path} holds {type(weights).__name__}, not a state dict.")
    return weights


def _check_zip(path: Path, size: int) -> None:
    """Refuses what PyTorch never writes and would read without a word."""
    with zipfile.ZipFile(path) as file:
        parts = file.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise _refusal(path, "has compressed parts, which PyTorch does not write")
        if sum(part.file_size for part in parts) > size:
            raise _refusal(path, "has parts that are larger than the file")
        if damaged := file.testzip():
            raise _refusal(path, f"is damaged in '{shown(damaged)}'")


def _refusal(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} is refused: it {why}; give one with a state dict alone.")


def unwrap(state_dict: Mapping[str, Any]) -> list[Stored]:
    """The tensors of a state dict, or of the checkpoint around it, without batch norm's counters.

    Raises:
      UsageError: it is no state dict, holds itself, or an entry is no tensor or has no name.
    """
    seen = set()
    while True:
        if not isinstance(state_dict, Mapping):
            raise UsageError(f"{type(state_dict).__name__} given in the place of a state dict.")
        if id(state_dict) in seen:
            raise UsageError("The checkpoint holds itself under 'state_dict'; give a state dict.")
        seen.add(id(state_dict))
        inner = state_dict.get("state_dict")
        if not isinstance(inner, Mapping):
            break
        state_dict = inner
    for name in state_dict:
        if not isinstance(name, str):
            raise UsageError(
                f"The state dict has {type(name).__name__} as a name; give one whose names are "
                f"strings."
            )
    return [
        Stored.of(name, value)
        for name, value in state_dict.items()
        if not name.endswith("num_batches_tracked")
    ]
