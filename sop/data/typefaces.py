"""Typefaces as a TFDS builder: rendered scraps of text, whose class is the face.

Nothing is downloaded: the faces are those that matplotlib carries, or lie in a folder of fonts.
"""

import functools
import string
import zlib
from pathlib import Path
from typing import ClassVar

import cv2
import matplotlib
import numpy as np
import tensorflow_datasets as tfds
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from sop.errors import UsageError

SIZE = 32  # pixels of height and width
COUNTS = {"train": 120, "validation": 40, "test": 80}  # split → scraps of each face
# Those of matplotlib's fonts that have the Latin letters; the others hold symbols.
FACES = (
    *(
        f"DejaVu{family}{style}"
        for family, slant in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
        for style in ("", "-Bold", f"-{slant}", f"-Bold{slant}")
    ),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *(f"cm{style}10" for style in ("b", "mi", "r", "ss", "ti", "tt")),
)
_SPLITS = tuple(COUNTS)
_CONSONANTS, _VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"


class Typefaces(tfds.core.GeneratorBasedBuilder):
    """Grey scraps of text of 32×32 pixels: 120 of each face to train, 40 to validate, 80 to test.

    The words are made up. No word, size, contrast, brightness or place of a line is in two splits.
    Within a split all faces are given the same words, and sizes by the height of their x (5 to 10
    pixels), so only the shapes differ. The faces take turns: every part of a split ('train[:25%]')
    has as many scraps of each.

    The config 'matplotlib' has 22 faces; 'own' those of all .ttf and .otf files with the letters
    a–z and A–Z in the folder of manual downloads, or below it, named after the files.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="matplotlib", description="The faces that matplotlib has."),
        tfds.core.BuilderConfig(name="own", description="The faces in a folder of fonts."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    put .ttf or .otf files of two or more faces with Latin letters into that folder or below it.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(SIZE, SIZE, 1), encoding_format="png"),
                "label": tfds.features.ClassLabel(),  # its names are those of the files
            }
        )
        return self.dataset_info_from_configs(
            features=features, supervised_keys=("image", "label"), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        if self.builder_config.name == "own":
            fonts = _latin_fonts(Path(dl_manager.manual_dir))
        else:
            folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
            fonts = {face: folder / f"{face}.ttf" for face in FACES}
        self.info.features["label"].names = list(fonts)
        return {split: self._generate_examples(list(fonts.values()), split) for split in COUNTS}

    def _generate_examples(self, fonts: list[Path], split: str):
        for number in range(COUNTS[split]):
            for label, font in enumerate(fonts):
                # Already encoded: TFDS would need TensorFlow to encode it.
                png = cv2.imencode(".png", scrap(font, split, number))[1].tobytes()
                yield number * len(fonts) + label, {"image": png, "label": label}


def scrap(font: Path, split: str, number: int) -> np.ndarray:
    """uint8 [SIZE, SIZE]: dark lines of text on a lighter ground, scrap `number` of a split.

    All that is drawn at random is a function of split and number, not of the font.
    """
    rng = np.random.default_rng((_SPLITS.index(split), number))
    draw = functools.partial(_draw, rng, _SPLITS.index(split))
    quarters = draw(20, 41)  # of a pixel, the height of x
    contrast = draw(60, 220)
    ink = draw(0, 255 - contrast)
    face = _face(font, quarters)
    image = Image.new("L", (SIZE, SIZE), ink + contrast)
    canvas = ImageDraw.Draw(image)
    baseline, leading = draw(0, 12), 0.55 * quarters  # 2.2 times the height of x
    while baseline - leading < SIZE:
        line = " ".join(rng.choice(_words(split), 8))
        canvas.text((-draw(0, 60), baseline), line, ink, face, anchor="ls")
        baseline += leading
    return np.asarray(image)


def _draw(rng: np.random.Generator, split: int, low: int, high: int) -> int:
    """A number of [low, high); the three splits get every third one each."""
    first = low + (split - low) % len(_SPLITS)
    return int(rng.choice(np.arange(first, high, len(_SPLITS))))


@functools.cache
def _words(split: str) -> np.ndarray:
    """Five hundred words of two to four syllables, a quarter of them with a capital."""
    rng = np.random.default_rng(_SPLITS.index(split))
    words: set[str] = set()
    while len(words) < 500:
        length = 2 * rng.integers(2, 5)
        word = "".join(rng.choice(list((_CONSONANTS, _VOWELS)[i % 2])) for i in range(length))
        if zlib.crc32(word.encode()) % len(_SPLITS) == _SPLITS.index(split):
            words.add(word)
    return np.array(
        [word.title() if rank % 4 == 0 else word for rank, word in enumerate(sorted(words))]
    )


@functools.lru_cache(256)  # of one split; FreeType may hold a file open for each
def _face(font: Path, quarters: int) -> ImageFont.FreeTypeFont:
    """The font at the size that makes x so many quarters of a pixel high."""
    return _load(font, 100 * quarters / (4 * _height_of_x(font)))


def _height_of_x(font: Path) -> float:
    """Of the font at 100 pixels."""
    return -_load(font, 100).getbbox("x", anchor="ls")[1]


def _load(font: Path, size: float) -> ImageFont.FreeTypeFont:
    # Not by raqm, which is not on every machine and sets lines in its own way.
    return ImageFont.truetype(font, size, layout_engine=ImageFont.Layout.BASIC)


def _latin_fonts(folder: Path) -> dict[str, Path]:
    """name → file of each font below the folder that has a–z and A–Z, in the order of names."""
    files = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".ttf", ".otf"))
    fonts = {path.relative_to(folder).as_posix(): path for path in files if _is_latin(path)}
    if len(fonts) < 2:
        raise UsageError(
            f"Folder {folder} holds {len(fonts)} fonts with Latin letters, and 'typefaces/own' "
            "needs two: put .ttf or .otf files there, or name another folder by --manual_dir."
        )
    return fonts


def _is_latin(path: Path) -> bool:
    try:
        letters = FT2Font(str(path)).get_charmap()
    except (RuntimeError, OSError):  # no font, whatever its name says
        return False
    return all(ord(letter) in letters for letter in string.ascii_letters) and _height_of_x(path) > 0
