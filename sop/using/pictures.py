"""One picture of what a look inside found in one image."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sop.training.durable import write_figure
from sop.training.storage import locate
from sop.using.figures import show_image, title

_COLUMNS = 5
_MOST_MAPS = 10  # of one kind that are drawn, the deepest layers'
_MOST_NAMED = 12  # curves in a legend
_SHOWN = 0.99  # of a matrix's entries lie within the colours; few are far larger
_SMALLEST = 200  # pixels of a side under a map

# Kind → heading above its curves, and label of their axis.
_CURVES = {
    "channel_weights": ("GSoP: weight of each channel", "weight"),
    "gates": ("CGD: gate of each channel, x (1 + g)", "g"),
    "weights": ("attention: weight of each channel", "weight"),
    "lambda": ("GFGP: λ of each channel", "λ"),
}
# Kind → heading above a map, its lowest and highest colour; None: of its own values.
_MAPS: dict[str, tuple[str, float | None, float | None]] = {
    "position_weights": ("GSoP: weight of positions", 0.0, 1.0),
    "gates": ("CGD: gate of positions", -1.0, 1.0),
    "weights": ("attention: weight of positions", None, None),
    "pooling": ("pooling: 0 average, 1 max", 0.0, 1.0),
}
Draw = Callable[[Axes], None]


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one run made of one image.

    Attributes:
      run: its name for captions.
      image: uint8 [H, W, 3], as the network got it.
      says: the class and its probability, in words.
      explained: the class of Grad-CAM.
      layer: of the heat map.
      found: see `sop.using.inside.Look`, of this image alone.
    """

    run: str
    image: np.ndarray
    says: str
    explained: str
    layer: str
    found: Mapping[str, np.ndarray]


def draw(path: str | os.PathLike, name: str, seen: Sequence[Seen]) -> Path:
    """Writes the picture of one image: where each run looks, then what the first one's methods say.

    Args:
      path: of the PNG.
      name: of the image, above it.
      seen: of each run.
    """
    panels: list[Draw] = [partial(_image, name=name, seen=seen)]
    panels += [partial(_heat, each) for each in seen] + [partial(_grad_cam, each) for each in seen]
    panels += _said(seen[0].found)
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.3 * columns, 3.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        panel(axes)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    write_figure(path, figure)
    return locate(path)


def overlaid(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A map [h, w] ≥ 0, scaled by its maximum and upsampled bilinearly, over uint8 [H, W, 3].

    A small image is enlarged first, so that the map is smooth.
    """
    factor = -(-_SMALLEST // max(image.shape[:2]))
    image = image.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = image.shape[:2]
    heat = np.asarray(heat, np.float32) / max(float(heat.max()), 1e-12)
    heat = cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)
    levels = (heat.clip(0, 1) * 255).astype(np.uint8)
    colors = cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)[..., ::-1]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    return (0.5 * grey + 0.5 * colors).astype(np.uint8)


def _image(axes: Axes, name: str, seen: Sequence[Seen]) -> None:
    show_image(axes, seen[0].image)
    says = [each.says if len(seen) == 1 else f"{each.run}: {each.says}" for each in seen]
    title(axes, "\n".join((name, *says)), fontsize=9)


def _heat(seen: Seen, axes: Axes) -> None:
    show_image(axes, overlaid(seen.image, seen.found["heat"]))
    title(axes, f"{seen.run}\nmean |{_brief(seen.layer)}| after ReLU", fontsize=9)


def _grad_cam(seen: Seen, axes: Axes) -> None:
    show_image(axes, overlaid(seen.image, seen.found["grad_cam"]))
    title(axes, f"{seen.run}\nGrad-CAM of {seen.explained}", fontsize=9)


def _said(found: Mapping[str, np.ndarray]) -> list[Draw]:
    """The panels of all that methods say."""
    panels: list[Draw] = []
    for kind in dict.fromkeys(name.partition("/")[0] for name in found if "/" in name):
        values = {
            name.partition("/")[2]: value
            for name, value in sorted(found.items(), key=lambda item: _numbered(item[0]))
            if name.startswith(f"{kind}/")
        }
        curves = {path: value for path, value in values.items() if value.ndim == 1}
        if kind in _CURVES and curves:
            panels.append(partial(_curves, kind, curves))
        if kind in _MAPS:
            maps = [
                (path, value if value.ndim == 2 else value.mean(axis=-1))
                for path, value in values.items()
                if value.ndim > 1
            ]
            panels += [partial(_map, kind, *each) for each in maps[-_MOST_MAPS:]]
    for path in (name.partition("/")[2] for name in found if name.startswith("covariance/")):
        panels += [
            partial(_matrix, heading, found[f"{kind}/{path}"])
            for kind, heading in (("covariance", "covariance"), ("root", "after the root"))
            if f"{kind}/{path}" in found
        ]
        panels.append(partial(_spectra, found, path))
    return panels


def _curves(kind: str, values: Mapping[str, np.ndarray], axes: Axes) -> None:
    heading, label = _CURVES[kind]
    for number, (path, value) in enumerate(values.items()):
        color = _color(number / max(len(values) - 1, 1))
        place = np.linspace(0, 1, len(value)) if len(value) > 1 else np.array([0.5])
        marker = "o" if len(value) == 1 else None
        name = _brief(path) if len(values) <= _MOST_NAMED else None
        axes.plot(place, np.sort(value), color=color, label=name, linewidth=1.2, marker=marker)
    title(axes, heading, fontsize=9)
    axes.set_xlabel("channels in rising order, as a share", fontsize=8)
    axes.set_ylabel(label, fontsize=8)
    _plain(axes)
    if len(values) <= _MOST_NAMED:
        axes.legend(frameon=False, fontsize=6)


def _map(kind: str, path: str, value: np.ndarray, axes: Axes) -> None:
    heading, low, high = _MAPS[kind]
    drawn = axes.imshow(value, cmap="viridis", vmin=low, vmax=high)
    axes.figure.colorbar(drawn, ax=axes, fraction=0.046)
    axes.set_axis_off()
    title(axes, f"{heading}\n{_brief(path)}", fontsize=9)


def _matrix(heading: str, value: np.ndarray, axes: Axes) -> None:
    limit = max(float(np.quantile(np.abs(value), _SHOWN)), 1e-12)
    drawn = axes.imshow(value, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.figure.colorbar(drawn, ax=axes, fraction=0.046, extend="both")
    axes.set_axis_off()
    title(axes, f"MPN-COV: {heading}", fontsize=9)


def _spectra(found: Mapping[str, np.ndarray], path: str, axes: Axes) -> None:
    for kind, label, color in (
        ("spectrum", "covariance", "#4C72B0"),
        ("root_spectrum", "after the root", "#DD5143"),
    ):
        values = found.get(f"{kind}/{path}")
        if values is not None:
            shares = values / max(float(values[0]), 1e-12)
            shown = shares > 1e-6  # what is left is rounding
            axes.plot(np.arange(1, len(values) + 1)[shown], shares[shown], color=color, label=label)
    axes.set_yscale("log")
    title(axes, "MPN-COV: eigenvalues", fontsize=9)
    axes.set_xlabel("number", fontsize=8)
    axes.set_ylabel("share of the largest", fontsize=8)
    _plain(axes)
    axes.legend(frameon=False, fontsize=7)


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _color(share: float) -> tuple[float, ...]:
    return colormaps["viridis"](0.9 * share)


def _numbered(path: str) -> list[tuple[int, str]]:
    """A key that sorts 'layer1_2' before 'layer1_10'."""
    return [(int(word), "") if word.isdigit() else (0, word) for word in re.split(r"(\d+)", path)]


def _brief(path: str) -> str:
    """'features/layer1_2/attention' → 'layer1_2'."""
    return path.removeprefix("features/").removesuffix("/attention")
