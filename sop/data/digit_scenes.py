"""Scenes composed of scikit-learn's handwritten digits, as a TFDS builder for detection."""

from collections.abc import Iterator
from typing import ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds

from sop.data.digits import is_test

SIZE = 64  # pixels of height and width
COUNTS = {"train": 2000, "test": 400}  # split → scenes
MOST = 6  # digits in a scene
_SPLITS = tuple(COUNTS)


class DigitScenes(tfds.core.GeneratorBasedBuilder):
    """Grey scenes of 64×64 pixels with one to six digits: 2,000 for training, 400 for testing.

    The digits are real and those of training and testing disjoint, split as in 'digits'; the
    scenes are composed. A digit is enlarged 1 to 3 times, from 8×8 to 24×24 pixels, and lies on
    noise or on stripes, lighter or darker than these. Boxes do not overlap; a digit for which no
    place is found is left out. A mask is where a digit covers more than 30 %, its box is the
    smallest around the mask. 'instances' holds the number of the object at each pixel, from 1.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="composed", description="On noise and stripes."),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        picture = tfds.features.Image(shape=(SIZE, SIZE, 1), encoding_format="png")
        features = tfds.features.FeaturesDict(
            {
                "image": picture,
                "instances": picture,
                "objects": tfds.features.Sequence(
                    {
                        "bbox": tfds.features.BBoxFeature(),
                        "label": tfds.features.ClassLabel(names=[str(each) for each in range(10)]),
                    }
                ),
            }
        )
        return self.dataset_info_from_configs(
            features=features,
            homepage="https://archive.ics.uci.edu/dataset/80",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split: str) -> Iterator:
        from sklearn.datasets import load_digits  # see sop.data.digits

        digits = load_digits()
        chosen = is_test(digits.target) == (split == "test")
        images, labels = digits.images[chosen] / 16, digits.target[chosen]
        for number in range(COUNTS[split]):
            image, instances, used = scene(images, split, number)
            objects = [
                {"bbox": _normalized(instances == 1 + place), "label": int(labels[index])}
                for place, index in enumerate(used)
            ]
            # Already encoded: TFDS would need TensorFlow to encode it.
            png = {"image": _encode(image), "instances": _encode(instances)}
            yield number, {**png, "objects": objects}


def scene(images: np.ndarray, split: str, number: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Scene `number` of a split.

    Args:
      images: float [n, 8, 8] in [0, 1], the digits of the split.
    Returns:
      uint8 [SIZE, SIZE] image, uint8 [SIZE, SIZE] number of the object at each pixel, and which
      digits the objects are.
    """
    rng = np.random.default_rng((_SPLITS.index(split), number))
    dark = rng.random() < 0.5
    ground = rng.uniform(0, 70) + _texture(rng)
    taken, instances = np.zeros((SIZE, SIZE), bool), np.zeros((SIZE, SIZE), np.uint8)
    used: list[int] = []
    for _ in range(rng.integers(1, MOST + 1)):
        index, side = int(rng.integers(len(images))), int(rng.integers(8, 25))
        cover = cv2.resize(images[index], (side, side), interpolation=cv2.INTER_LINEAR).clip(0, 1)
        for top, left in rng.integers(0, SIZE - side + 1, (20, 2)):
            window = slice(top, top + side), slice(left, left + side)
            if not taken[window].any():
                break
        else:
            continue
        taken[window] = True
        used.append(index)
        ground[window] += cover * (rng.uniform(170, 240) - ground[window])
        instances[window][cover > 0.3] = len(used)
    image = np.rint(ground).clip(0, 255).astype(np.uint8)
    return (255 - image if dark else image), instances, used


def _texture(rng: np.random.Generator) -> np.ndarray:
    """float [SIZE, SIZE] within about ±30: blurred noise or two sets of stripes."""
    if rng.random() < 0.5:
        noise = rng.normal(0, 20, (SIZE, SIZE))
        return noise if rng.random() < 0.5 else 3 * cv2.GaussianBlur(noise, (0, 0), 1.5)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    stripes = np.zeros((SIZE, SIZE))
    for angle, length, phase in zip(*rng.random((3, 2)), strict=True):
        along = rows * np.sin(np.pi * angle) + columns * np.cos(np.pi * angle)
        stripes += 12 * np.sin(2 * np.pi * (along / (4 + 16 * length) + phase))
    return stripes + rng.normal(0, 5, (SIZE, SIZE))


def _normalized(mask: np.ndarray) -> tfds.features.BBox:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    edges = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    return tfds.features.BBox(*(float(edge) / SIZE for edge in edges))


def _encode(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()
