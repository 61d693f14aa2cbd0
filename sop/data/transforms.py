"""Image transforms, composed by strings such as "random_resized_crop(224) | flip".

Each transform is a small dataclass that maps images uint8 [B, H, W, 3] and the uniform random
numbers of each, float64 [B, num_draws] in [0, 1), to images. It is a pure function: whoever draws
the numbers decides what the randomness depends on.
"""

import dataclasses
import functools
from abc import ABC, abstractmethod
from statistics import NormalDist
from typing import Annotated, ClassVar, Literal

import cv2
import numpy as np
from numpy.lib.stride_tricks import as_strided
from PIL import Image

from sop.checks import Condition, within
from sop.data import images as codec
from sop.data.images import Region
from sop.data.notation import name_of, parse_steps
from sop.data.randaugment import CHANGES
from sop.errors import UsageError

Size = tuple[int, int]  # height, width
Side = Annotated[int, within(1, 8192)]  # pixels of an image
Strength = Annotated[float, within(0.0, 100.0)]
_Level = Annotated[int, within(0, 255)]
_Ratio = Annotated[float, within(0.001, 1000.0)]
Range = Annotated[
    tuple[_Ratio, _Ratio], Condition(lambda pair: pair[0] <= pair[1], "in ascending order")
]
Interpolation = Literal["bilinear", "bicubic"]


class Transform(ABC):
    """What every transform has; the defaults are those of one that is not random."""

    num_draws: ClassVar[int] = 0
    num_views: ClassVar[int | None] = None  # how many images one becomes, in a new axis 1

    @abstractmethod
    def __call__(self, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """[B, H, W, 3], [B, num_draws] → [B, H', W', 3] or [B, num_views, H', W', 3]."""

    @abstractmethod
    def output_size(self, size: Size | None) -> Size | None:
        """Size of the result for images of `size`; None where it differs among images."""


class Sampling(Transform):
    """A transform that cuts out a rectangle and resizes it.

    Standing first it decides how large a JPEG must be decoded.
    """

    @abstractmethod
    def region(self, height: int, width: int, draws: np.ndarray) -> Region:
        """The rectangle of an image of that size, and the size it is resized to."""

    def __call__(self, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        size = images.shape[1:3]
        return np.stack(
            [
                self.region(*size, row).cut(Image.fromarray(image))
                for image, row in zip(images, draws, strict=True)
            ]
        )


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(Sampling):
    """A rectangle of random area, aspect ratio (log-uniform) and place, resized to a square.

    Ten attempts at a rectangle that lies inside the image, else the largest central one of
    allowed ratio, as in torchvision; "Going deeper with convolutions" (2014), §6.
    """

    size: Side
    area: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    attempts: ClassVar[int] = 10
    num_draws: ClassVar[int] = 2 * attempts + 2

    def region(self, height: int, width: int, draws: np.ndarray) -> Region:
        heights, widths = _rectangles(height, width, self.area, self.ratio, draws[:-2])
        inside = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        if not inside.any():
            return self._central(height, width)
        first = int(inside.argmax())
        crop_height, crop_width = int(heights[first]), int(widths[first])
        top = int(draws[-2] * (height - crop_height + 1))
        left = int(draws[-1] * (width - crop_width + 1))
        return Region(
            top, left, crop_height, crop_width, (self.size, self.size), self.interpolation
        )

    def _central(self, height: int, width: int) -> Region:
        if width / height < self.ratio[0]:
            crop_height, crop_width = max(round(width / self.ratio[0]), 1), width
        elif width / height > self.ratio[1]:
            crop_height, crop_width = height, max(round(height * self.ratio[1]), 1)
        else:
            crop_height, crop_width = height, width
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        return Region(
            top, left, crop_height, crop_width, (self.size, self.size), self.interpolation
        )

    def output_size(self, size: Size | None) -> Size:
        return self.size, self.size


def _rectangles(height, width, area, ratio, draws):
    """[n] heights and widths in pixels of [2n] draws: uniform area, log-uniform width/height."""
    areas, ratios = draws.reshape(2, -1)
    areas = height * width * (area[0] + areas * (area[1] - area[0]))
    low, high = np.log(ratio)
    ratios = np.exp(low + ratios * (high - low))
    widths, heights = np.sqrt(areas * ratios), np.sqrt(areas / ratios)
    return np.rint(heights).astype(int), np.rint(widths).astype(int)


@dataclasses.dataclass(frozen=True)
class Resize(Sampling):
    """Resizes to a rectangle, whatever the aspect ratio was."""

    height: Side
    width: Side
    interpolation: Interpolation = "bilinear"

    def region(self, height: int, width: int, draws: np.ndarray) -> Region:
        return Region(0, 0, height, width, (self.height, self.width), self.interpolation)

    def output_size(self, size: Size | None) -> Size:
        return self.height, self.width


@dataclasses.dataclass(frozen=True)
class ResizeShort(Sampling):
    """Resizes so that the short side becomes `size`; the aspect ratio stays."""

    size: Side
    interpolation: Interpolation = "bilinear"

    def region(self, height: int, width: int, draws: np.ndarray) -> Region:
        size = self.output_size((height, width))
        return Region(0, 0, height, width, size, self.interpolation)

    def output_size(self, size: Size | None) -> Size | None:
        if size is None:
            return None
        height, width = size
        if height <= width:
            return self.size, self.size * width // height
        return self.size * height // width, self.size


@dataclasses.dataclass(frozen=True)
class ResizedCenterCrop(Sampling):
    """The central square whose side is `share` of the short side, resized to size × size."""

    size: Side
    share: Annotated[float, within(1e-3, 1.0)] = 0.875
    interpolation: Interpolation = "bilinear"

    def region(self, height: int, width: int, draws: np.ndarray) -> Region:
        side = max(int(self.share * min(height, width)), 1)
        top, left = (height - side + 1) // 2, (width - side + 1) // 2
        return Region(top, left, side, side, (self.size, self.size), self.interpolation)

    def output_size(self, size: Size | None) -> Size:
        return self.size, self.size


@dataclasses.dataclass(frozen=True)
class CenterCrop(Transform):
    """The central size × size square; a smaller image is padded with black."""

    size: Side

    def __call__(self, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        images = _pad_to(images, self.size)
        top, left = (round((side - self.size) / 2) for side in images.shape[1:3])
        return images[:, top : top + self.size, left : left + self.size]

    def output_size(self, size: Size | None) -> Size:
        return self.size, self.size


@dataclasses.dataclass(frozen=True)
class PadCrop(Transform):
    """Pads every side with `padding` black pixels, then cuts out a random size × size square."""

    size: Side
    padding: Annotated[int, within(0, 8192)]
    num_draws: ClassVar[int] = 2

    def __call__(self, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        batch, height, width, channels = images.shape
        pad = self.padding
        padded = np.zeros((batch, height + 2 * pad, width + 2 * pad, channels), np.uint8)
        padded[:, pad : pad + height, pad : pad + width] = images
        padded = _pad_to(padded, self.size)
        places = [side - self.size + 1 for side in padded.shape[1:3]]
        # Every square at every place, without copying: [B, *places, size, size, 3].
        by_image, by_row, by_column, by_channel = padded.strides
        squares = as_strided(
            padded,
            (batch, *places, self.size, self.size, channels),
            (by_image, by_row, by_column, by_row, by_column, by_channel),
        )
        top, left = (draws * places).astype(int).T
        return squares[np.arange(batch), top, left]

    def output_size(self, size: Size | None) -> Size:
        return self.size, self.size


@dataclasses.dataclass(frozen=True)
class Flip(Transform):
    """Mirrors left and right with probability ½."""

    num_draws: ClassVar[int] = 1

    def __call__(self, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        chosen = draws[:, 0] < 0.5
        if not chosen.any():
            return images
        flipped = images.copy()
        flipped[chosen] = _mirror(images[chosen])
        return flipped

    def output_size(self, size: Size | None) -> Size | None:
        return size


@dataclasses.dataclass(frozen=True)
class ColorJitter(Transform):
    """Scales brightness, contrast and saturation by factors uniform in [1 − s, 1 + s] ∩ [0, ∞).

    In the place of s may stand a range of factors, (low, high). The three are applied in a random
    order, each cut off to uint8 as Pillow does: brightness f·x; contrast f·x + (1 − f)·mean of the
    grey image; saturation f·x + (1 − f)·grey.
    """

    brightness: Strength | Range
    contrast: Strength | Range
    saturation: Strength | Range
    num_draws: ClassVar[int] = 4
    orders: ClassVar[tuple[tuple[int, int, int], ...]] = (
        (0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)
    )  # fmt: skip

    def __call__(self, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        return np.stack([self._one(image, row) for image, row in zip(images, draws, strict=True)])

    def _one(self, image: np.ndarray, draws: np.ndarray) -> np.ndarray:
        strengths = (self.brightness, self.contrast, self.saturation)
        low, high = np.array([_factors(each) for each in strengths]).T
        factors = low + draws[:3] * (high - low)
        changes = (_scale_brightness, _scale_contrast, _scale_saturation)
        for which in self.orders[int(draws[3] * len(self.orders))]:
            if not low[which] == high[which] == 1:
                image = changes[which](image, float(factors[which]))
        return image

    def output_size(self, size: Size | None) -> Size | None:
        return size


def _factors(strength: float | tuple[float, float]) -> tuple[float, float]:
    """The range that a strength, or itself, stands for."""
    if isinstance(strength, tuple | list):
        return strength[0], strength[1]
    return max(1 - strength, 0), 1 + strength


def _scale_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.LUT(image, _cut_off(factor * np.arange(256)))


def _scale_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    mean = int(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean() + 0.5)
    return cv2.LUT(image, _cut_off(factor * np.arange(256) + (1 - factor) * mean))


def _scale_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    # OpenCV rounds: what it adds to cut off instead leaves whole numbers as they are.
    return cv2.addWeighted(image, factor, grey, 1 - factor, -0.499)


def _cut_off(levels: np.ndarray) -> np.ndarray:
    # Whole numbers that rounding errors have made a little less stay what they were.
    return (levels + 1e-6).clip(0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Lighting(Transform):
    """AlexNet's PCA noise: adds Σᵢ αᵢ λᵢ vᵢ to every pixel's RGB, αᵢ ~ N(0, deviation²).

    λ and v are eigenvalues and -vectors of ImageNet's RGB covariance on the scale [0, 1]; the
    sum is rounded to uint8. Krizhevsky et al. (2012), §4.1.
    """

    deviation: Strength
    num_draws: ClassVar[int] = 3
    eigenvalues: ClassVar[np.ndarray] = np.array([0.2175, 0.0188, 0.0045])
    eigenvectors: ClassVar[np.ndarray] = np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )

    def __call__(self, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        normals = [[NormalDist().inv_cdf(max(u, 2.0**-54)) for u in row] for row in draws]
        alphas = self.deviation * np.array(normals)
        shifts = 255 * (alphas * self.eigenvalues) @ self.eigenvectors.T
        levels = np.arange(256)[:, None] + shifts[:, None]  # [B, 256, 3]
        tables = np.rint(levels).clip(0, 255).astype(np.uint8)
        return np.stack(
            [cv2.LUT(image, table[:, None]) for image, table in zip(images, tables, strict=True)]
        )

    def output_size(self, size: Size | None) -> Size | None:
        return size


@dataclasses.dataclass(frozen=True)
class RandAugment(Transform):
    """Changes drawn from `sop.data.randaugment.CHANGES`, one after another, all of one strength.

    Cubuk et al. (2020), §3; sizes, signs and the magnitude of at most 30 are torchvision's. Each is
    made with `probability`; timm makes it with ½, and its magnitude 9 of 10 is 27 here.
    """

    num_changes: Annotated[int, within(1, 16)] = 2
    magnitude: Annotated[float, within(0.0, 30.0)] = 9
    probability: Annotated[float, within(0.0, 1.0)] = 1.0

    @property
    def num_draws(self) -> int:
        return (2 if self.probability == 1 else 3) * self.num_changes

    def __call__(self, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        return np.stack([self._one(image, row) for image, row in zip(images, draws, strict=True)])

    def _one(self, image: np.ndarray, draws: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(image)
        changes = list(CHANGES.values())
        for which, sign, *whether in draws.reshape(self.num_changes, -1):
            if whether and whether[0] >= self.probability:
                continue
            change = changes[int(which * len(changes))]
            picture = change(picture, self.magnitude / 30, 1 if sign < 0.5 else -1)
        return np.asarray(picture)

    def output_size(self, size: Size | None) -> Size | None:
        return size


@dataclasses.dataclass(frozen=True)
class RandomErasing(Transform):
    """With `probability`, fills a rectangle of random area, aspect ratio (log-uniform) and place.

    Zhong et al. (2020), algorithm 1; areas and ratios as in torchvision: ten attempts at a
    rectangle that fits in, else the image stays as it is.
    """

    probability: Annotated[float, within(0.0, 1.0)] = 0.5
    area: Range = (0.02, 1 / 3)
    ratio: Range = (0.3, 3.3)
    fill: tuple[_Level, _Level, _Level] = (124, 116, 104)  # ImageNet's mean
    attempts: ClassVar[int] = 10
    num_draws: ClassVar[int] = 2 * attempts + 3

    def __call__(self, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        images = images.copy()
        for image, row in zip(images, draws, strict=True):
            if row[-1] < self.probability:
                self._erase(image, row[:-1])
        return images

    def _erase(self, image: np.ndarray, draws: np.ndarray) -> None:
        height, width = image.shape[:2]
        heights, widths = _rectangles(height, width, self.area, self.ratio, draws[:-2])
        inside = (widths > 0) & (widths < width) & (heights > 0) & (heights < height)
        if inside.any():
            first = int(inside.argmax())
            top = int(draws[-2] * (height - heights[first] + 1))
            left = int(draws[-1] * (width - widths[first] + 1))
            image[top : top + heights[first], left : left + widths[first]] = self.fill

    def output_size(self, size: Size | None) -> Size | None:
        return size


@dataclasses.dataclass(frozen=True)
class TenCrop(Transform):
    """Four corners and centre, size × size each, of the image and of its mirror image."""

    size: Side
    num_views: ClassVar[int | None] = 10

    def __call__(self, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        images = _pad_to(images, self.size)
        size = self.size
        bottom, right = (side - size for side in images.shape[1:3])
        middle = round(bottom / 2), round(right / 2)
        corners = (0, 0), (0, right), (bottom, 0), (bottom, right), middle
        both = (images, _mirror(images))  # mirrored, then cut, as in torchvision
        crops = [
            view[:, top : top + size, left : left + size] for view in both for top, left in corners
        ]
        return np.stack(crops, axis=1)

    def output_size(self, size: Size | None) -> Size:
        return self.size, self.size


@dataclasses.dataclass(frozen=True)
class MirrorViews(Transform):
    """The image and its mirror image; with a size, the central square of each.

    Where what is cut off is odd, that of the mirror image lies a pixel beside the mirrored square.
    """

    size: Side | None = None
    num_views: ClassVar[int | None] = 2

    def __call__(self, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        views = [images, _mirror(images)]
        if self.size is not None:
            views = [CenterCrop(self.size)(view, draws) for view in views]
        return np.stack(views, axis=1)

    def output_size(self, size: Size | None) -> Size | None:
        return size if self.size is None else (self.size, self.size)


def _mirror(images: np.ndarray) -> np.ndarray:
    # For OpenCV the batch is one tall image; it is ten times faster than NumPy here.
    rows = images.reshape(-1, *images.shape[-2:])
    return cv2.flip(rows, 1).reshape(images.shape)


def _pad_to(images: np.ndarray, size: int) -> np.ndarray:
    """Pads [B, H, W, 3] with black around the centre to at least size × size."""
    missing = [max(size - side, 0) for side in images.shape[1:3]]
    if not any(missing):
        return images
    margins = [(total // 2, total - total // 2) for total in missing]
    return np.pad(images, [(0, 0), *margins, (0, 0)])


TRANSFORMS = {
    "center_crop": CenterCrop,
    "color_jitter": ColorJitter,
    "flip": Flip,
    "lighting": Lighting,
    "mirror_views": MirrorViews,
    "pad_crop": PadCrop,
    "randaugment": RandAugment,
    "random_erasing": RandomErasing,
    "random_resized_crop": RandomResizedCrop,
    "resize": Resize,
    "resize_short": ResizeShort,
    "resized_center_crop": ResizedCenterCrop,
    "ten_crop": TenCrop,
}


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Transforms one after the other."""

    transforms: tuple[Transform, ...]

    @property
    def num_draws(self) -> int:
        return sum(transform.num_draws for transform in self.transforms)

    def __call__(self, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, 3], float64 [B, num_draws] → uint8 [B, (V,) H', W', 3]."""
        used = 0
        for transform in self.transforms:
            images = transform(images, draws[:, used : used + transform.num_draws])
            used += transform.num_draws
            if images.dtype != np.uint8:
                name = name_of(transform, TRANSFORMS)
                raise UsageError(
                    f"The transform {name} makes {images.dtype} of images of uint8; let it round "
                    "and return uint8."
                )
        return images

    def decode(self, data: bytes, draws: np.ndarray) -> np.ndarray:
        """Encoded image, float64 [num_draws] → uint8 [(V,) H', W', 3]; decodes only what is needed.

        Raises:
          BadImageError: The bytes are not an image, or one cut short.
        """
        first = self.transforms[0] if self.transforms else None
        if not (isinstance(first, Sampling) and codec.is_jpeg(data)):
            return self(codec.decode(data)[None], draws[None])[0]
        image = codec.decode_resized(
            data, lambda height, width: first.region(height, width, draws[: first.num_draws])
        )
        return Pipeline(self.transforms[1:])(image[None], draws[None, first.num_draws :])[0]

    def split(self) -> tuple["Pipeline", "Pipeline"]:
        """(what does the same to an image every time and keeps its views one, the rest)."""
        fixed = 0
        for transform in self.transforms:
            if transform.num_draws or transform.num_views:
                break
            fixed += 1
        return Pipeline(self.transforms[:fixed]), Pipeline(self.transforms[fixed:])

    def output_size(self, size: Size | None) -> Size | None:
        """(H', W') for images of `size`, where None means that it differs among images."""
        return functools.reduce(lambda at, step: step.output_size(at), self.transforms, size)

    @property
    def num_views(self) -> int | None:
        return self.transforms[-1].num_views if self.transforms else None


def parse(text: str, *, training: bool, name: str | None = None) -> Pipeline:
    """ "a(1) | b" → Pipeline; see `sop.data.notation.parse_steps`."""
    return Pipeline(parse_steps(text, TRANSFORMS, Transform, training=training, name=name))
