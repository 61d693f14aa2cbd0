"""Encoded bytes → uint8 RGB images, decoded only as large as needed, and resizing."""

import io

import cv2
import numpy as np
from PIL import Image

# The pipeline's own threads are the parallelism; OpenCV's would compete with them.
cv2.setNumThreads(0)

_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_EXIF_ORIENTATION = 0x0112
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG", b"IEND"


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
        raise BadImageError(str(error)) from error
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
    whole = (
        data.rfind(_JPEG_END) > data.rfind(_JPEG_SCAN)
        if is_jpeg(data)
        else not data.startswith(_PNG_START) or _PNG_END in data[-16:]
    )
    if not whole:
        raise BadImageError("the image is cut short")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[reduction])
    except cv2.error as error:
        raise BadImageError(str(error)) from error
    if image is None:
        raise BadImageError("the bytes are not an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [h, w, 3] → uint8 [height, width, 3]: box filter to shrink, bilinear to enlarge."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    return cv2.resize(image, (width, height), interpolation=_filter(shrinks))


def _filter(shrinks: bool) -> int:
    return cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
