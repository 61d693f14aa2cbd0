import contextlib
import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from sop.data import images


@pytest.fixture(scope="module")
def picture():
    rows, columns = np.mgrid[0:48, 0:64]
    channels = [4 * columns % 256, 5 * rows % 256, 128 + 100 * np.sin(rows / 7 + columns / 9)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_png_of_any_mode_becomes_rgb(picture, mode):
    data = encode(picture.convert(mode))
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(images.decode(data), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_of_any_mode_becomes_rgb(picture, mode):
    data = encode(picture.convert(mode), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(images.decode(data) - expected).max() <= 1


def test_sixteen_bit_samples_keep_their_brightness(picture):
    grey = np.asarray(picture.convert("L"))
    data = encode(Image.fromarray(grey.astype(np.uint16) * 257))
    np.testing.assert_array_equal(images.decode(data)[..., 0], grey)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_without_orientation_an_image_is_read_as_it_lies(picture, orientation):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "maker", orientation
    data = images.without_orientation(encode(picture, "JPEG", exif=exif))
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(images.decode(data), expected)
    assert Image.open(io.BytesIO(data)).getexif()[0x010F] == "maker"
    plain = encode(picture, "JPEG")
    assert images.without_orientation(plain) == plain
    cut_short = data[:60]
    assert len(images.without_orientation(cut_short)) == 60


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_obeyed(picture, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture, kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    decoded = images.decode(data)
    np.testing.assert_array_equal(decoded, expected)
    assert images.image_size(data) == decoded.shape[:2]
    if kind == "JPEG":
        height, width = decoded.shape[0] // 4, decoded.shape[1] // 4
        small = images.decode_resized(
            data, lambda *size: images.Region(0, 0, *size, (height, width))
        )
        blocks = decoded.reshape(height, 4, width, 4, 3).mean((1, 3))
        assert np.abs(small - blocks)[1:-1, 1:-1].mean() < 8


def broken(data, kind):
    return {
        "nothing": b"",
        "text": b"not an image at all",
        "half": data[: len(data) // 2],
        "almost all": data[:-10],
        "start": data[:20],
    }[kind]


@pytest.mark.parametrize("kind", ["nothing", "text", "half", "almost all", "start"])
@pytest.mark.parametrize("codec", ["JPEG", "PNG"])
def test_broken_images_are_noticed(picture, codec, kind):
    with pytest.raises(images.BadImageError):
        images.decode(broken(encode(picture, codec), kind))


def test_a_truncated_jpeg_with_a_whole_thumbnail_is_noticed(picture):
    exif = Image.Exif()
    exif[0x010E] = "x" + encode(picture.resize((16, 12)), "JPEG").decode("latin-1")
    data = encode(picture, "JPEG", exif=exif)
    assert images.decode(data).shape == (48, 64, 3)
    with pytest.raises(images.BadImageError, match="cut short"):
        images.decode(data[:-20])


@pytest.mark.parametrize("codec", ["JPEG", "PNG"])
def test_bytes_after_the_image_do_not_matter(picture, codec):
    data = encode(picture, codec)
    np.testing.assert_array_equal(images.decode(data + b"\0" * 99), images.decode(data))


@pytest.mark.parametrize("size", [(48, 64), (20, 30), (96, 100), (20, 100)])
def test_regions_equal_what_pillow_cuts_and_resizes(picture, size):
    expected = picture.resize(size[::-1], Image.Resampling.BILINEAR)
    whole = images.Region(0, 0, 48, 64, size).cut(picture)
    np.testing.assert_array_equal(whole, expected)
    expected = picture.crop((5, 7, 45, 40)).resize(size[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(images.Region(7, 5, 33, 40, size).cut(picture), expected)


def test_a_region_of_a_reduced_image_keeps_its_place():
    ramp = np.repeat(np.arange(0, 240, 3, dtype=np.uint8)[None, :, None], 80, 0).repeat(3, 2)
    region = images.Region(21, 41, 80, 80, (20, 20))  # of an image twice as large
    resized = region.cut(Image.fromarray(ramp), 2)
    centers = 20.5 + 2 * np.arange(20) + 1 - 0.5  # of the results' pixels, in pixels of the ramp
    np.testing.assert_allclose(resized[10, 1:-1, 0], 3 * centers[1:-1], atol=1)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_pixels_are_bounded_before_decoding(kind, monkeypatch):
    data = encode(Image.new("RGB", (200, 100)), kind)
    assert images.decode(data).shape == (100, 200, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 19_999)
    for read in (images.decode, lambda data: images.decode_resized(data, None)):
        with pytest.raises(images.BadImageError, match="200×100 pixels are more than 19999"):
            read(data)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "BMP", "PPM", "TGA", "ICO"])
def test_every_format_of_pillow_is_read(picture, kind):
    data = encode(picture, kind)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(images.decode(data), np.asarray(expected))
    assert images.image_size(data) == expected.size[::-1]


def test_sixteen_bit_tiff_keeps_its_brightness(picture):
    grey = np.asarray(picture.convert("L"))
    data = encode(Image.fromarray(grey.astype(np.uint16) * 257), "TIFF")
    np.testing.assert_array_equal(images.decode(data)[..., 0], grey)


def test_damaged_images_are_bad_images(picture):
    """Whatever is cut or changed, in every format."""
    generator = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        whole = encode(picture, kind)
        for _ in range(40):
            data = bytearray(whole)
            for place in generator.integers(len(data), size=3):
                data[place] = generator.integers(256)
            data = bytes(
                data[: generator.integers(len(data))] if generator.random() < 0.3 else data
            )
            for read in (images.decode, images.image_size):
                with contextlib.suppress(images.BadImageError):
                    read(data)
