"""FGVC-Aircraft as a TFDS builder: 10,000 photographs of aircraft of 100 variants."""

import tensorflow_datasets as tfds
from etils import epath

FOLDER = "fgvc-aircraft-2013b"


class FgvcAircraft(tfds.core.GeneratorBasedBuilder):
    """Splits 'train', 'validation' and 'test' of 3,334, 3,333 and 3,333 images, as published.

    Results are reported for training on 'train+validation'. The JPEG files are stored as they are,
    the line with the photographer at the bottom included. Maji et al., "Fine-grained visual
    classification of aircraft" (2013).
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""
    Download fgvc-aircraft-2013b.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/
    and extract it there, so that {FOLDER}/data/images/*.jpg and
    {FOLDER}/data/images_variant_train.txt lie in that folder.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(),  # its names stand in the download
                "file_name": tfds.features.Text(),
            }
        )
        return self.dataset_info_from_configs(
            features=features,
            supervised_keys=("image", "label"),
            homepage="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        data = dl_manager.manual_dir / FOLDER / "data"
        self.info.features["label"].names = _lines(data / "variants.txt")
        files = {"train": "train", "validation": "val", "test": "test"}
        return {
            split: self._generate_examples(data, f"images_variant_{suffix}.txt")
            for split, suffix in files.items()
        }

    def _generate_examples(self, data: epath.Path, list_name: str):
        for line in _lines(data / list_name):
            number, variant = line.split(" ", maxsplit=1)
            image = data / "images" / f"{number}.jpg"
            yield (
                number,
                # Bytes, not a path: TFDS would need TensorFlow to open one.
                {"image": image.read_bytes(), "label": variant, "file_name": image.name},
            )


def _lines(path: epath.Path) -> list[str]:
    return path.read_text("utf-8").splitlines()
