"""What all pictures of this room share."""

import os

import numpy as np
from matplotlib.axes import Axes

_LONGEST = 22  # characters of a class's or a file's name in a caption


def short(name: str) -> str:
    """A name for a caption: its end, where a long one differs from others."""
    name = " ".join(name.encode(errors="replace").decode().split())
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"


def caption(name: str) -> str:
    """What tells an image from others of its kind: the name of a file, the number of a record."""
    return name.partition(" of ")[0] if name.startswith("record ") else os.path.basename(name)


def title(axes: Axes, text: str, **options) -> None:
    """Sets a title in which a `$` begins no formula."""
    axes.set_title(text, parse_math=False, **options)


def show_image(axes: Axes, image: np.ndarray) -> None:
    """Draws uint8 [H, W, 3] without axes; the pixels of small ones as squares."""
    axes.imshow(image, interpolation="nearest" if max(image.shape) <= 64 else "antialiased")
    axes.set_axis_off()


def first_view(image: np.ndarray) -> np.ndarray:
    """[(V,) H, W, 3] → [H, W, 3]."""
    return image[0] if image.ndim == 4 else image
