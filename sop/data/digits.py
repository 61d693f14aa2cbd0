"""scikit-learn's handwritten digits as a TFDS builder that needs neither network nor TensorFlow."""

from typing import ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds

NUM_TEST = 360


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 handwritten digits of 8×8 pixels; 1,437 for training and 360 for testing.

    Grey values 0–16 are scaled to 0–255. The split is fixed and stratified: with the digits
    ordered by class, test examples are evenly spaced. The configs '0-4' and '5-9' hold half of
    the classes each, labelled from 0, with the same split.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="all", description="All ten digits."),
        tfds.core.BuilderConfig(name="0-4", description="Digits 0 to 4, labelled 0 to 4."),
        tfds.core.BuilderConfig(name="5-9", description="Digits 5 to 9, labelled 0 to 4."),
    ]

    @property
    def _digits(self) -> range:
        name = self.builder_config.name
        return range(10) if name == "all" else range(int(name[0]), int(name[-1]) + 1)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=[str(digit) for digit in self._digits]),
            }
        )
        return self.dataset_info_from_configs(
            features=features,
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        return {"train": self._generate_examples(test=False), "test": self._generate_examples(True)}

    def _generate_examples(self, test: bool):
        # Imported here: only preparing needs scikit-learn, and importing it takes a second.
        from sklearn.datasets import load_digits

        digits = load_digits()
        for index in np.flatnonzero(is_test(digits.target) == test):
            if (digit := int(digits.target[index])) in self._digits:
                image = np.rint(digits.images[index] * (255 / 16)).astype(np.uint8)
                # Already encoded: TFDS would need TensorFlow to encode it.
                png = cv2.imencode(".png", image)[1].tobytes()
                yield int(index), {"image": png, "label": digit - self._digits.start}


def is_test(targets: np.ndarray) -> np.ndarray:
    """bool [N]: NUM_TEST examples, evenly spaced among the examples sorted by class."""
    count = len(targets)
    by_class = np.argsort(targets, kind="stable")
    ranks = np.arange(count)
    chosen = (ranks + 1) * NUM_TEST // count > ranks * NUM_TEST // count
    return chosen[np.argsort(by_class)]
