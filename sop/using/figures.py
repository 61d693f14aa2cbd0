"""What all pictures of this room share."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sop.training.durable import write_atomically

_LONGEST = 22  # characters of a class's or a file's name in a caption


def save(figure: Figure, path: str | os.PathLike, dpi: int = 100) -> Path:
    """Writes a figure as PNG, replacing what was there at once."""
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of signs that the font does not have
        figure.savefig(picture, format="png", dpi=dpi)
    write_atomically(path, picture.getvalue())
    return Path(path)


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
