"""How arrays lie in PyTorch: axes of kernels, CGD's columns and images of one pixel."""

import re

import numpy as np

# CGD keeps its vectors as columns and its biases as images of one pixel.
_COLUMN = re.compile(r"(^|/|_)w\d?$")
_BIAS_IMAGE = re.compile(r"(^|/)bias\d$")
_BIAS_ROW = re.compile(r"(^|/)(height|width)_bias\d$")


def to_torch(path: str, value: np.ndarray) -> np.ndarray:
    """A Flax array in PyTorch's layout."""
    if path.endswith("/kernel"):
        return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.transpose()
    if _COLUMN.search(path):
        return value[:, None]
    if _BIAS_IMAGE.search(path):
        return value[None, :, None, None]
    if _BIAS_ROW.search(path):
        return value[None]
    return value


def to_flax(path: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A PyTorch array in Flax's layout, of this shape."""
    if path.endswith("/kernel"):
        return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.transpose()
    return value.reshape(shape)


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in PyTorch of a Flax array of this shape."""
    return to_torch(path, np.broadcast_to(np.float32(0), shape)).shape
