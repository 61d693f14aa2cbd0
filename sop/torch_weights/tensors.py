"""Tensors as they stand in a file: what they are called, their shape and type, their values."""

import dataclasses
from typing import Any

import numpy as np

from sop.errors import UsageError

_FLOATS = ("bfloat16", "float16", "float32", "float64")
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8")
_SHOWN = 80


def shown(name: str) -> str:
    """A name of a file's as it may stand in a sentence: short, and on one line."""
    text = name if name.isprintable() else name.encode("unicode_escape").decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def kind_of(value: Any) -> str:
    """'float32', 'complex64', 'sparse_coo float32', 'meta float32' …, 'list'."""
    dtype = getattr(value, "dtype", type(value).__name__)
    words = [getattr(dtype, "name", str(dtype))]
    if hasattr(value, "detach"):  # PyTorch's
        words.insert(0, str(getattr(value, "layout", "strided")))
        words[:0] = [mark for mark in ("meta", "nested") if getattr(value, f"is_{mark}", False)]
    words = [word.removeprefix("torch.") for word in words]
    return " ".join(word for word in words if word != "strided")


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor of PyTorch, or an array, under its name in the file; read only when asked for.

    Attributes:
      name: in the file.
      value: the tensor.
      shape: of it.
    """

    name: str
    value: Any
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, value: Any) -> "Stored":
        """Raises UsageError if the value has no shape."""
        try:
            shape = tuple(int(size) for size in value.shape)
        except Exception as error:  # whatever a foreign object raises
            raise UsageError(
                f"'{shown(name)}' is {kind_of(value)}, not a plain tensor; give a state dict, or "
                f"a checkpoint that has it under 'state_dict'."
            ) from error
        return cls(name, value, shape)

    def array(self, dtype: np.dtype) -> np.ndarray:
        """The values in this type.

        Raises:
          UsageError: they are no plain array of real numbers (whole ones for a type of integers),
            or not finite in this type.
        """
        wanted = _INTEGERS if np.issubdtype(dtype, np.integer) else _FLOATS
        kind = kind_of(self.value)
        if kind not in wanted:
            raise UsageError(
                f"'{shown(self.name)}' is {kind}, but must be one of {', '.join(wanted)}; convert "
                f"it before."
            )
        try:
            with np.errstate(over="ignore"):  # found below
                array = np.asarray(_plain(self.value)).astype(dtype)  # no view of a file
        except Exception as error:  # whatever a foreign object raises
            raise UsageError(
                f"'{shown(self.name)}', {kind}, cannot be read ({type(error).__name__}); give "
                f"a plain tensor."
            ) from error
        if not np.isfinite(array).all():
            raise UsageError(
                f"'{shown(self.name)}' holds numbers that are not finite in {np.dtype(dtype)}; "
                f"give weights without NaN and infinity."
            )
        return array


def _plain(value: Any) -> Any:
    if not hasattr(value, "detach"):
        return value
    value = value.float() if "bfloat16" in str(value.dtype) else value  # NumPy has none
    return value.numpy(force=True)
