"""A detector loaded from its work folder, to find objects in images."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sop.data import images as codec
from sop.data.images import BadImageError, without_orientation
from sop.data.objects import make_objects
from sop.data.scene_examples import to_original
from sop.data.scenes import Scene, ScenePipeline
from sop.detection.metric import Found
from sop.errors import UsageError
from sop.models.lookup import is_detector
from sop.training.detection import Detection
from sop.training.step import make_mesh
from sop.using.images import Image, evaluation_pipeline, given
from sop.using.loaded import Loaded


def open_detector(
    workdir: str | os.PathLike,
    config: ConfigDict,
    checkpoint: str = "best",
    say: Callable[[str], None] = print,
) -> "Detector":
    """As `sop.load`, by a checked config of the same model.

    Raises:
      UsageError: as `sop.load`, or the run is a classifier.
    """
    if not is_detector(config.model):
        raise UsageError(f"The run in {workdir} is no detector: use main.py --mode=predict.")
    one = make_mesh(jax.local_devices()[:1])
    return Detector.open(workdir, config, checkpoint, one, say)


@dataclasses.dataclass(frozen=True, repr=False)
class Detector(Loaded):
    """A trained detector, see `Loaded`; it uses one device.

    `model` is called as `model.apply(variables, images, train=False, sizes=sizes)`, see
    `sop.detection.SSD`.
    """

    def detect(self, images: Image | Sequence[Image]) -> list[Found]:
        """The objects in images, after the run's own evaluation transforms.

        Images are taken one by one, so that a program is compiled for each size that the transforms
        give, one or two, and for no number of images.

        Args:
          images: a path; uint8 [H, W, 3] or [N, H, W, 3]; or a sequence of paths and uint8
            [H, W, 3] of any sizes.
        Returns:
          boxes, scores, labels and, by Mask R-CNN, masks in pixels of each image as it was given.
        Raises:
          UsageError: an image cannot be decoded, or is none.
        """
        pictures = given(images)
        found = []
        for index in range(len(pictures)):
            try:
                pixels = self.decode(pictures[index][0])
            except BadImageError as error:
                raise UsageError(
                    f"The image {pictures.describe(index)} cannot be decoded, {error}: leave it "
                    "out."
                ) from error
            found.append(self._found(pixels))
        return found

    def decode(self, image: bytes | np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3], turned by its EXIF data where the run's images are.

        Raises:
          BadImageError: it cannot be decoded.
        """
        if isinstance(image, np.ndarray):
            return image
        obeys = self.config.input.exif == "obey"
        return codec.decode(image if obeys else without_orientation(image))

    def arguments(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """The images, and of each height and width of what is not padding: here all of it."""
        sizes = np.tile(np.array(images.shape[1:3], np.float32), (len(images), 1))
        return images, sizes

    def compute(self, variables: Any, *arguments: jax.Array) -> dict[str, jax.Array]:
        """'boxes' [n, K, 4], 'scores', 'labels', 'valid' [n, K], perhaps 'masks' [n, K, M, M]."""
        images, sizes = arguments
        task = Detection(self.config, self.model)
        return task.forward(variables, {"image": images, "size": sizes})

    def answers(self, *arguments: np.ndarray) -> dict[str, np.ndarray]:
        return jax.device_get(self._compiled(self.variables, *arguments))

    @functools.cached_property
    def _compiled(self) -> Callable:
        return jax.jit(self.compute)

    def _found(self, pixels: np.ndarray) -> Found:
        size = pixels.shape[:2]
        scene = self._pipeline(Scene(pixels, make_objects([], []), None, size), np.zeros(0))
        sizes = np.array([scene.size], np.float32)
        said = self.answers(scene.image[None], sizes)
        one = {name: x[0] for name, x in said.items()}
        return to_original({**one, "size": sizes[0]}, size)

    @functools.cached_property
    def _pipeline(self) -> ScenePipeline:
        return evaluation_pipeline(self.config)
