"""The changes that RandAugment chooses from (Cubuk et al. 2020, §3), of pictures of Pillow.

Each takes a strength in [0, 1], of the largest one of AutoAugment (Cubuk et al. 2019, table 6), and
a sign of ±1. What a displaced picture leaves free becomes black; pixels are those of the nearest.
"""

from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

Picture = Image.Image
Change = Callable[[Picture, float, int], Picture]


def _affine(picture: Picture, *rows: float) -> Picture:
    """(x, y) ← (a x + b y + c, d x + e y + f), around the upper left corner."""
    return picture.transform(picture.size, Image.Transform.AFFINE, rows)


def _enhanced(enhancer: Callable) -> Change:
    """By a factor of 1 ± 0.9."""
    return lambda picture, strength, sign: enhancer(picture).enhance(1 + sign * 0.9 * strength)


def _shift(side: int, strength: float, sign: int) -> int:
    """Up to 150 of 331 pixels."""
    return sign * int(150 / 331 * side * strength)


CHANGES: dict[str, Change] = {
    "identity": lambda picture, strength, sign: picture,
    "shear_x": lambda picture, strength, sign: _affine(
        picture, 1, sign * 0.3 * strength, 0, 0, 1, 0
    ),
    "shear_y": lambda picture, strength, sign: _affine(
        picture, 1, 0, 0, sign * 0.3 * strength, 1, 0
    ),
    "translate_x": lambda picture, strength, sign: _affine(
        picture, 1, 0, _shift(picture.width, strength, sign), 0, 1, 0
    ),
    "translate_y": lambda picture, strength, sign: _affine(
        picture, 1, 0, 0, 0, 1, _shift(picture.height, strength, sign)
    ),
    "rotate": lambda picture, strength, sign: picture.rotate(sign * 30 * strength),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "posterize": lambda picture, strength, sign: ImageOps.posterize(
        picture, 8 - round(4 * strength)
    ),
    "solarize": lambda picture, strength, sign: ImageOps.solarize(picture, 255 * (1 - strength)),
    "autocontrast": lambda picture, strength, sign: ImageOps.autocontrast(picture),
    "equalize": lambda picture, strength, sign: ImageOps.equalize(picture),
}
