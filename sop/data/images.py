"""Encoded bytes → uint8 RGB images, decoded only as large as needed, and resizing."""

import io
import math

import cv2
import numpy as np
from PIL import Image

# The pipeline's own threads are the parallelism; OpenCV's would compete with them.
cv2.setNumThreads(0)

# The "reduced" flags with "RGB" in the place of "BGR".
_REDUCED = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_COLOR_RGB,
}
_EXIF_ORIENTATION = 0x0112
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG", b"IEND"
_NO_IMAGE = "its bytes are not an image"


class BadImageError(ValueError):
    """Bytes that are no complete image of a known format."""


def is_jpeg(data: bytes) -> bool:
    return data.startswith(_JPEG_START)


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) of an encoded image as `decode` will return it; only the header is read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadImageError(_NO_IMAGE) from error
    return (width, height) if turned else (height, width)


def decode(data: bytes, reduction: int = 1) -> np.ndarray:
    """An encoded image → uint8 [H, W, 3], RGB, turned as its EXIF orientation says.

    Greyscale is repeated over the channels, palettes are looked up, an alpha channel is dropped,
    CMYK and 16-bit samples are converted.

    Args:
      data: JPEG, PNG, or what else OpenCV reads.
      reduction: 1, 2, 4 or 8: divides height and width (rounding up). JPEG is then decoded at
        that size, which costs less; other formats have only 1.

    Raises:
      BadImageError: The bytes are no image, or one cut short.
    """
    # OpenCV fills the missing part of a truncated JPEG with grey and says nothing.
    if is_jpeg(data):
        whole = data.rfind(_JPEG_END) > data.rfind(_JPEG_SCAN)
    else:
        whole = not data.startswith(_PNG_START) or _PNG_END in data
    if not whole:
        raise BadImageError("it is cut short")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[reduction])
    except cv2.error as error:
        raise BadImageError(_NO_IMAGE) from error
    if image is None:
        raise BadImageError(_NO_IMAGE)
    return image


def resize(
    image: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """uint8 [h, w, 3] → uint8 [*size, 3], bilinear, with a wider (antialiasing) filter to shrink.

    Pillow does it: published networks were trained and are evaluated with its filter, from which
    OpenCV's differ by some grey levels.

    Args:
      image: The image.
      size: (height, width) of the result.
      box: (top, left, bottom, right) of the part to resize, between pixels too; None: all.
    """
    top, left, bottom, right = box or (0, 0, *image.shape[:2])
    first_row, first_column = math.floor(top), math.floor(left)
    image = image[first_row : math.ceil(bottom), first_column : math.ceil(right)]
    if image.shape[:2] == size == (bottom - top, right - left):
        return image
    box = (left - first_column, top - first_row, right - first_column, bottom - first_row)
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized)
