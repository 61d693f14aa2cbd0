"""Transforms that move boxes and masks with the pixels: "flip | resize(300, 300)".

Each is a small dataclass that maps a scene and uniform random numbers, float64 [num_draws] in
[0, 1), to a scene; a pure function, as those of `sop.data.transforms`, whose strings name them.
"""

import dataclasses
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

import cv2
import numpy as np

from sop.checks import Condition, within
from sop.data.notation import parse_steps
from sop.data.objects import Objects, overlaps
from sop.data.transforms import Range, Side, Size
from sop.errors import UsageError

_MEAN = (124, 116, 104)  # ImageNet's, RGB
_TRIALS = 50
_Overlap = Annotated[float, within(0.0, 1.0)]
_Overlaps = Annotated[tuple[_Overlap, ...], Condition(lambda each: len(each) > 0, "not empty")]


@dataclasses.dataclass(frozen=True)
class Scene:
    """An image uint8 [H, W, 3], its objects, and their masks uint8 [n, H, W], if wanted.

    Attributes:
      size: height and width of what is not padding, which stands at the right and below.
    """

    image: np.ndarray
    objects: Objects
    masks: np.ndarray | None
    size: Size

    def moved(self, image: np.ndarray, boxes: np.ndarray, masks: np.ndarray | None) -> "Scene":
        objects = dataclasses.replace(self.objects, boxes=boxes.astype(np.float32))
        return Scene(image, objects, masks, image.shape[:2])

    def kept(self, rows: np.ndarray) -> "Scene":
        """Without the other objects."""
        masks = None if self.masks is None else self.masks[rows]
        return dataclasses.replace(self, objects=kept(self.objects, rows), masks=masks)


def kept(objects: Objects, rows: np.ndarray) -> Objects:
    """Some of the objects, by a mask or by indices."""
    arrays = ("boxes", "labels", "crowd", "difficult", "areas")
    changes = {name: getattr(objects, name)[rows] for name in arrays}
    if objects.masks is not None:
        changes["masks"] = tuple(objects.masks[row] for row in np.arange(len(objects))[rows])
    return dataclasses.replace(objects, **changes)


class SceneTransform(ABC):
    """What every transform has; the defaults are those of one that is not random."""

    num_draws: ClassVar[int] = 0
    num_views: ClassVar[int | None] = None

    @abstractmethod
    def __call__(self, scene: Scene, draws: np.ndarray) -> Scene:
        """The scene, changed; float64 [num_draws]."""

    def output_size(self, size: Size | None) -> Size | None:
        """Size of the result for scenes of `size`; None where it differs among scenes."""
        return None


@dataclasses.dataclass(frozen=True)
class Flip(SceneTransform):
    """Mirrors left and right with probability ½."""

    num_draws: ClassVar[int] = 1

    def __call__(self, scene: Scene, draws: np.ndarray) -> Scene:
        if draws[0] >= 0.5:
            return scene
        width = scene.image.shape[1]
        boxes = scene.objects.boxes.copy()
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        masks = None if scene.masks is None else scene.masks[:, :, ::-1]
        return scene.moved(np.ascontiguousarray(scene.image[:, ::-1]), boxes, masks)

    def output_size(self, size: Size | None) -> Size | None:
        return size


@dataclasses.dataclass(frozen=True)
class Resize(SceneTransform):
    """Stretches to a rectangle, whatever the aspect ratio was."""

    height: Side
    width: Side

    def __call__(self, scene: Scene, draws: np.ndarray) -> Scene:
        return _resized(scene, (self.height, self.width))

    def output_size(self, size: Size | None) -> Size:
        return self.height, self.width


@dataclasses.dataclass(frozen=True)
class ResizePad(SceneTransform):
    """As large as fits into `long` × `short`, the aspect ratio kept; black at the right and below.

    The result is (short, long), or (long, short) for an image higher than wide, each rounded up to
    a multiple of `divisor`: these two sizes and no other.
    """

    long: Side = 1333
    short: Side = 800
    divisor: Annotated[int, within(1, 1024)] = 32

    def __call__(self, scene: Scene, draws: np.ndarray) -> Scene:
        height, width = scene.image.shape[:2]
        scale = min(
            max(self.long, self.short) / max(height, width),
            min(self.long, self.short) / min(height, width),
        )
        inner = max(round(height * scale), 1), max(round(width * scale), 1)
        scene = _resized(scene, inner)
        margins = [
            (0, max(a - b, 0)) for a, b in zip(self.bucket(height, width), inner, strict=True)
        ]
        image = np.pad(scene.image, [*margins, (0, 0)])
        masks = None if scene.masks is None else np.pad(scene.masks, [(0, 0), *margins])
        return dataclasses.replace(scene.moved(image, scene.objects.boxes, masks), size=inner)

    def bucket(self, height: int, width: int) -> Size:
        """Height and width of the result."""
        long, short = (-(-side // self.divisor) * self.divisor for side in (self.long, self.short))
        return (long, short) if height > width else (short, long)

    def output_size(self, size: Size | None) -> Size | None:
        return None if size is None else self.bucket(*size)


@dataclasses.dataclass(frozen=True)
class Photometric(SceneTransform):
    """SSD's distortion of colors, each part with probability ½.

    Brightness + u, u in ±`brightness`; then, in this order or with the contrast last, contrast × u;
    saturation × u; hue + u degrees, in HSV; at last the channels change places at random. Rounded
    to uint8. Liu et al., "SSD" (2016), after Howard (2013).
    """

    brightness: Annotated[float, within(0.0, 255.0)] = 32
    contrast: Range = (0.5, 1.5)
    saturation: Range = (0.5, 1.5)
    hue: Annotated[float, within(0.0, 180.0)] = 18
    num_draws: ClassVar[int] = 12

    def __call__(self, scene: Scene, draws: np.ndarray) -> Scene:
        chosen, amounts = draws[:6] < 0.5, draws[6:]
        image = scene.image.astype(np.float32)
        if chosen[0]:
            image += np.float32((2 * amounts[0] - 1) * self.brightness)
        contrast_last = amounts[5] < 0.5
        if chosen[1] and not contrast_last:
            image *= _between(self.contrast, amounts[1])
        if chosen[2] or chosen[3]:
            colors = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
            if chosen[2]:
                colors[..., 1] *= _between(self.saturation, amounts[2])
            if chosen[3]:
                colors[..., 0] += np.float32((2 * amounts[3] - 1) * self.hue)
                colors[..., 0] %= 360
            image = cv2.cvtColor(colors, cv2.COLOR_HSV2RGB)
        if chosen[1] and contrast_last:
            image *= _between(self.contrast, amounts[1])
        if chosen[4]:
            rest = [0, 1, 2]
            first = rest.pop(int(amounts[4] * 3))
            order = [first, *rest[:: 1 if amounts[4] * 3 % 1 < 0.5 else -1]]
            image = image[..., order]
        image = np.rint(np.nan_to_num(image)).clip(0, 255).astype(np.uint8)
        return dataclasses.replace(scene, image=image)

    def output_size(self, size: Size | None) -> Size | None:
        return size


@dataclasses.dataclass(frozen=True)
class Expand(SceneTransform):
    """With probability ½, puts the image somewhere on a canvas up to `most` times as large.

    The canvas has the color of ImageNet's mean. Liu et al. (2016), §3.6.
    """

    most: Annotated[float, within(1.0, 16.0)] = 4.0
    num_draws: ClassVar[int] = 4

    def __call__(self, scene: Scene, draws: np.ndarray) -> Scene:
        if draws[0] >= 0.5:
            return scene
        height, width = scene.image.shape[:2]
        ratio = 1 + draws[1] * (self.most - 1)
        sides = int(height * ratio), int(width * ratio)
        top, left = int(draws[2] * (sides[0] - height + 1)), int(draws[3] * (sides[1] - width + 1))
        image = np.full((*sides, 3), _MEAN, np.uint8)
        image[top : top + height, left : left + width] = scene.image
        masks = None
        if scene.masks is not None:
            masks = np.zeros((len(scene.masks), *sides), np.uint8)
            masks[:, top : top + height, left : left + width] = scene.masks
        return scene.moved(image, scene.objects.boxes + np.float32([left, top, left, top]), masks)


@dataclasses.dataclass(frozen=True)
class MinIoUCrop(SceneTransform):
    """SSD's random crop: the whole, or a part that overlaps every object by some IoU at least.

    The least IoU is one of `overlaps` or 0. A part has sides of `smallest` to 1 of the image's and
    an aspect ratio of ½ to 2; objects whose centres are outside are dropped, the others cut off.
    Fifty attempts, then another least IoU is drawn. Liu et al. (2016), §2.2.
    """

    overlaps: _Overlaps = (0.1, 0.3, 0.5, 0.7, 0.9)
    smallest: Annotated[float, within(0.01, 1.0)] = 0.3
    num_draws: ClassVar[int] = 1

    def __call__(self, scene: Scene, draws: np.ndarray) -> Scene:
        # How many numbers are needed is not known before: they follow from the one that is drawn.
        rng = np.random.default_rng(int(draws[0] * 2**53))
        height, width = scene.image.shape[:2]
        boxes = scene.objects.boxes
        if not len(boxes):
            return scene
        for _ in range(_TRIALS):
            least = rng.choice([1.0, *self.overlaps, 0.0])
            if least == 1:
                return scene
            for _ in range(_TRIALS):
                w, h = (side * rng.uniform(self.smallest, 1) for side in (width, height))
                w, h = max(int(w), 1), max(int(h), 1)
                if not 0.5 <= h / w <= 2:
                    continue
                left, top = int(rng.uniform(0, width - w + 1)), int(rng.uniform(0, height - h + 1))
                part = np.array([left, top, left + w, top + h], np.float32)
                if overlaps(part, boxes).min() < least:
                    continue
                centres = (boxes[:, :2] + boxes[:, 2:]) / 2
                inside = ((centres > part[:2]) & (centres < part[2:])).all(axis=1)
                if inside.any():
                    return _cut(scene, part.astype(int), inside)
        return scene


def _between(pair: tuple[float, float], share: float) -> np.float32:
    return np.float32(pair[0] + share * (pair[1] - pair[0]))


def _cut(scene: Scene, part: np.ndarray, inside: np.ndarray) -> Scene:
    left, top, right, bottom = part.tolist()
    scene = scene.kept(inside)
    corner, sides = np.float32([left, top] * 2), np.float32([right - left, bottom - top] * 2)
    boxes = (scene.objects.boxes - corner).clip(0, sides)
    masks = None if scene.masks is None else scene.masks[:, top:bottom, left:right]
    return scene.moved(scene.image[top:bottom, left:right], boxes, masks)


def _resized(scene: Scene, size: Size) -> Scene:
    height, width = scene.image.shape[:2]
    if size == (height, width):
        return scene
    image = cv2.resize(scene.image, size[::-1], interpolation=cv2.INTER_LINEAR)
    boxes = scene.objects.boxes * np.float32([size[1] / width, size[0] / height] * 2)
    masks = scene.masks
    if masks is not None:
        nearest = [cv2.resize(m, size[::-1], interpolation=cv2.INTER_NEAREST) for m in masks]
        masks = np.stack(nearest) if nearest else np.zeros((0, *size), np.uint8)
    return scene.moved(image, boxes, masks)


TRANSFORMS = {
    "expand": Expand,
    "flip": Flip,
    "min_iou_crop": MinIoUCrop,
    "photometric": Photometric,
    "resize": Resize,
    "resize_pad": ResizePad,
}


@dataclasses.dataclass(frozen=True)
class ScenePipeline:
    """Transforms one after the other."""

    transforms: tuple[SceneTransform, ...]

    @property
    def num_draws(self) -> int:
        return sum(transform.num_draws for transform in self.transforms)

    def __call__(self, scene: Scene, draws: np.ndarray) -> Scene:
        used = 0
        for transform in self.transforms:
            scene = transform(scene, draws[used : used + transform.num_draws])
            used += transform.num_draws
        return scene

    def size_of(self, size: Size) -> Size:
        """The size of what comes out for scenes of `size`.

        Raises:
          UsageError: it is drawn at random.
        """
        found: Size | None = size
        for step in self.transforms:
            found = step.output_size(found)
        if found is None:
            raise UsageError(
                "resize_pad cannot follow a transform that changes the size of images at random, "
                "such as expand: leave one of them out."
            )
        return found

    def output_size(self, size: Size | None) -> Size | None:
        """The same; where `size` is None, the one size that all results have, None: they have two.

        Raises:
          UsageError: see `size_of` and `sizes`.
        """
        if size is not None:
            return self.size_of(size)
        one, *others = self.sizes()
        return None if others else one

    def sizes(self) -> list[Size]:
        """The sizes that results have, of whatever size the images are: one or two.

        Raises:
          UsageError: they differ from image to image.
        """
        found: list[Size | None] = [None]
        for step in self.transforms:
            if isinstance(step, ResizePad):
                found = list(dict.fromkeys((step.bucket(1, 2), step.bucket(2, 1))))
            else:
                found = list(dict.fromkeys(step.output_size(size) for size in found))
        sizes = [size for size in found if size is not None]
        if not sizes:
            raise UsageError(
                "The scenes have different sizes: let config.input.train_transforms and "
                "config.input.eval_transforms end in resize(300, 300) or resize_pad(1333, 800)."
            )
        return sizes


def parse_scenes(text: str, *, training: bool, name: str | None = None) -> ScenePipeline:
    """ "a(1) | b" → ScenePipeline; see `sop.data.notation.parse_steps`."""
    steps = parse_steps(text, TRANSFORMS, SceneTransform, training=training, name=name)
    return ScenePipeline(steps)
