"""Encoded bytes → uint8 RGB images, decoded only as large as needed, and resizing."""

import dataclasses
import functools
import io
from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageOps

_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
# As many as Pillow finds suspicious. An image of 48 KB can hold 400 million.
MAX_PIXELS = 89_478_485
_EXIF_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # orientations that swap height and width
# Documents, films and drawings, which Pillow hands to other programs or cannot read by itself.
_NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}


class BadImageError(ValueError):
    """Bytes that are no complete image of a known format."""


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Of the pictures that Pillow reads."""
    formats = Image.registered_extensions()
    return frozenset(s for s, kind in formats.items() if kind in Image.OPEN.keys() - _NO_PICTURES)


def is_jpeg(data: bytes) -> bool:
    return data.startswith(b"\xff\xd8")


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) of an encoded image as `decode` will return it; only the header is read."""
    return _turned_size(_open(data))


def without_orientation(data: bytes) -> bytes:
    """The same JPEG with the EXIF orientation 1, upright; anything else as it is."""
    place = _orientation_at(data) if is_jpeg(data) else None
    if place is None:
        return data
    start, order = place
    return data[:start] + (1).to_bytes(2, order) + data[start + 2 :]


def _orientation_at(data: bytes) -> tuple[int, Literal["big", "little"]] | None:
    """Where the two bytes of a JPEG's EXIF orientation stand, and their order.

    A JPEG is a row of segments FF kind length …; that of kind E1 with 'Exif' holds a TIFF header
    and a directory of entries of 12 bytes: tag, type, count, value.
    """
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"\xda", b""):
        length = int.from_bytes(data[at + 2 : at + 4])
        if data[at + 1 : at + 10] == b"\xe1" + data[at + 2 : at + 4] + b"Exif\0\0":
            tiff = at + 10
            order: Literal["big", "little"] = "little" if data[tiff : tiff + 2] == b"II" else "big"
            directory = tiff + int.from_bytes(data[tiff + 4 : tiff + 8], order)
            count = int.from_bytes(data[directory : directory + 2], order)
            for entry in range(directory + 2, min(directory + 2 + 12 * count, len(data) - 11), 12):
                if int.from_bytes(data[entry : entry + 2], order) == _EXIF_ORIENTATION:
                    return entry + 8, order
            return None
        at += 2 + length
    return None


def decode(data: bytes) -> np.ndarray:
    """An encoded image → uint8 [H, W, 3], RGB, turned as its EXIF orientation says.

    Greyscale is repeated over the channels, palettes are looked up, an alpha channel is dropped,
    CMYK and 16-bit samples are converted. Of several frames the first is taken.

    Args:
      data: What Pillow reads.

    Raises:
      BadImageError: The bytes are no image, one cut short, or one of more than MAX_PIXELS.
    """
    if not data.startswith(_PNG_START):
        return np.asarray(_load(_open(data)))
    if _PNG_END not in data:
        raise BadImageError("it is cut short")
    _refuse_large(*(int.from_bytes(data[start : start + 4]) for start in (16, 20)))
    # For small images several times faster than Pillow, and it scales 16-bit samples.
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise BadImageError("its bytes are not an image") from error
    if image is None:
        raise BadImageError("its bytes are not an image")
    return image


def encode(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] → PNG, quickly made."""
    fast = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), fast)[1].tobytes()


def decode_resized(data: bytes, choose: Callable[[int, int], "Region"]) -> np.ndarray:
    """A JPEG → uint8 [*size, 3], the region that `choose` names; decoded only as large as needed.

    libjpeg halves an image up to three times while it decodes, which costs less than to decode it
    whole. Two pixels are left for each one of the result, so that the filter of the resizing still
    decides what the result looks like.

    Args:
      data: The JPEG.
      choose: (height, width) of the whole → what to keep of it.

    Raises:
      BadImageError: The bytes are no image, or one cut short.
    """
    image = _open(data)
    region = choose(*_turned_size(image))
    factor = reduction(region)
    if factor > 1:
        image.draft(None, (image.width // factor, image.height // factor))
    return region.cut(_load(image), factor)


@dataclasses.dataclass(frozen=True)
class Region:
    """A rectangle of an image, in pixels, and the size (height, width) it is resized to.

    Attributes:
      interpolation: 'bilinear' or 'bicubic'.
    """

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]
    interpolation: str = "bilinear"

    def cut(self, image: Image.Image, factor: int = 1) -> np.ndarray:
        """uint8 [*size, 3], of an image that is reduced by `factor`.

        With a wider (antialiasing) filter to shrink. Pillow does it: published networks were
        trained and are evaluated with its filter, from which OpenCV's differ by grey levels.
        """
        box = (self.left, self.top, self.left + self.width, self.top + self.height)
        if factor == 1:  # as torchvision: the filter sees nothing outside
            image = image if box == (0, 0, *image.size) else image.crop(box)
            box = (0, 0, *image.size)
        else:
            box = tuple(edge / factor for edge in box)
        resampling = Image.Resampling[self.interpolation.upper()]
        return np.asarray(image.resize(self.size[::-1], resampling, box=box))


def reduction(region: Region) -> int:
    """The largest of 8, 4, 2, 1 by which a JPEG may be reduced before `region` is cut out."""
    spare = min(region.height / region.size[0], region.width / region.size[1]) / 2
    return next(factor for factor in (8, 4, 2, 1) if factor <= max(spare, 1))


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise BadImageError("it has too many pixels") from error
    except Exception as error:  # Pillow's readers raise many kinds for damaged headers
        raise BadImageError("its bytes are not an image") from error
    _refuse_large(*image.size)
    return image


def _refuse_large(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImageError(f"its {width}×{height} pixels are more than {MAX_PIXELS}")


def _turned_size(image: Image.Image) -> tuple[int, int]:
    turned = _orientation(image) in _TURNED
    return image.size if turned else image.size[::-1]


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception as error:  # that of a PNG stands behind its pixels
        raise BadImageError("it is cut short or damaged") from error


def _load(image: Image.Image) -> Image.Image:
    """Decodes, turns by the EXIF orientation and converts to RGB."""
    try:
        image.load()
        if _orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # which `convert` would cut off at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image if image.mode == "RGB" else image.convert("RGB")  # which would copy
    except BadImageError:
        raise
    except Exception as error:  # as in _open
        raise BadImageError("it is cut short or damaged") from error
