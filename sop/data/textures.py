"""Materials as a TFDS builder that needs no network: crops of photographs, one for each class."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from sop.data.images import BadImageError, decode, encode, image_suffixes
from sop.data.packages import import_carrier
from sop.errors import UsageError

SIZE = 32  # pixels of height and width of a crop
PHOTOGRAPHS = ("brick", "grass", "gravel")  # of 512×512 grey pixels
_SMALLEST = 128  # pixels of a side of a photograph
# Split → (its part of a photograph: top, left, bottom, right; rows and columns of crops).
_PARTS = {
    "train": ((0, 0, 1, 0.5), (32, 16)),
    "validation": ((0, 0.5, 0.5, 1), (16, 16)),
    "test": ((0.5, 0.5, 1, 1), (16, 16)),
}


class Textures(tfds.core.GeneratorBasedBuilder):
    """Crops of 32×32 pixels: of each photograph 512 for training, 256 for validation and testing.

    The left half of a photograph is for training, the upper right quarter for validation, the lower
    right one for testing. The crops of a part overlap. The classes take turns, and the crops are in
    random order: a part of a split ('train[:10%]') has as many of each class, from everywhere.

    The config 'skimage' has the three materials that scikit-image's package carries; 'own' one for
    each image in the folder of manual downloads, named after the file.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="skimage", description="Brick, grass and gravel."),
        tfds.core.BuilderConfig(name="own", description="The photographs in a folder."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    put two or more photographs into that folder, one of each material.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(),  # its names are those of the photographs
            }
        )
        return self.dataset_info_from_configs(
            features=features,
            supervised_keys=("image", "label"),
            homepage="https://scikit-image.org/docs/stable/api/skimage.data.html",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        if self.builder_config.name == "own":
            photographs = _read(Path(dl_manager.manual_dir))
        else:
            data = import_carrier("skimage.data", self.name)
            grey = {name: getattr(data, name)() for name in PHOTOGRAPHS}
            photographs = {name: np.stack([each] * 3, axis=-1) for name, each in grey.items()}
        self.info.features["label"].names = list(photographs)
        return {
            split: self._generate_examples(list(photographs.values()), split) for split in _PARTS
        }

    def _generate_examples(self, photographs: list[np.ndarray], split: str):
        turns = zip(*(crops(each, split) for each in photographs), strict=True)
        for number, turn in enumerate(turns):
            for label, image in enumerate(turn):
                # Already encoded: TFDS would need TensorFlow to encode it.
                yield number * len(turn) + label, {"image": encode(image), "label": label}


def crops(photograph: np.ndarray, split: str) -> Iterator[np.ndarray]:
    """uint8 [H, W, 3] → the crops [SIZE, SIZE, 3] of a split, in a fixed random order."""
    (top, left, bottom, right), (rows, columns) = _PARTS[split]
    height, width, _ = photograph.shape
    tops = np.linspace(top * height, bottom * height - SIZE, rows).astype(int)
    lefts = np.linspace(left * width, right * width - SIZE, columns).astype(int)
    for number in np.random.default_rng(0).permutation(rows * columns):
        y, x = tops[number // columns], lefts[number % columns]
        yield photograph[y : y + SIZE, x : x + SIZE]


def _read(folder: Path) -> dict[str, np.ndarray]:
    """name → photograph [H, W, 3] of each image of the folder, in the order of names."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in image_suffixes())
    if len(paths) < 2:
        raise UsageError(
            f"Folder {folder} holds {len(paths)} photographs, and 'textures/own' needs two: put "
            "images of materials there, or name another folder by --manual_dir."
        )
    return {path.name: _photograph(path) for path in paths}


def _photograph(path: Path) -> np.ndarray:
    try:
        image = decode(path.read_bytes())
    except (BadImageError, OSError) as error:
        raise UsageError(f"Photograph {path} cannot be read ({error}): remove it.") from error
    if min(image.shape[:2]) < _SMALLEST:
        raise UsageError(
            f"Photograph {path} has {image.shape[0]}×{image.shape[1]} pixels: take one of at least "
            f"{_SMALLEST}×{_SMALLEST}."
        )
    return image
