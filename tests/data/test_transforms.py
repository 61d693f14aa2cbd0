import collections
import dataclasses
import io
import math
from typing import Annotated, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from sop.checks import within
from sop.data import images as codec
from sop.data import randomness, transforms
from sop.data.randaugment import CHANGES
from sop.errors import UsageError


def batch(height=12, width=10, count=5, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def draws_for(pipeline, count, seed=0):
    return randomness.epoch_uniforms(seed, 0, count, pipeline.num_draws)


def photograph(height, width):
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(9 * rows + k * 5 * columns) * np.cos(7 * columns * (k + 1)) for k in range(3)]
    return (127 + 120 * np.stack(waves, -1)).astype(np.uint8)


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return file.getvalue()


def test_pad_crop_takes_every_place_of_the_padded_image():
    images = batch(6, 6, 4000)
    images[:] = np.arange(1, 37, dtype=np.uint8).reshape(6, 6, 1)
    pipeline = transforms.parse("pad_crop(6, 2)", training=True)
    crops = pipeline(images, draws_for(pipeline, len(images)))
    padded = np.pad(images[0], [(2, 2), (2, 2), (0, 0)])
    places = {(i, j): padded[i : i + 6, j : j + 6] for i in range(5) for j in range(5)}
    found = [next(k for k, crop in places.items() if np.array_equal(crop, got)) for got in crops]
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert len(counts) == 25
    np.testing.assert_allclose(counts, 160, rtol=0.35)


def test_flip_mirrors_half_of_the_images():
    images = batch(count=400)
    pipeline = transforms.parse("flip", training=True)
    flipped = pipeline(images, draws_for(pipeline, 400))
    same = (flipped == images).all((1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 160 < mirrored.sum() < 240


@given(st.integers(1, 900), st.integers(1, 900), st.integers(0, 10_000), st.sampled_from([16, 224]))
@settings(max_examples=150, deadline=None)
def test_random_resized_crop_stays_inside_with_allowed_area_and_ratio(height, width, seed, size):
    crop = transforms.RandomResizedCrop(size)
    region = crop.region(height, width, randomness.uniforms(seed, 0, 0, crop.num_draws))
    assert 0 <= region.top <= region.top + region.height <= height
    assert 0 <= region.left <= region.left + region.width <= width
    assert region.height >= 1 and region.width >= 1
    if min(height, width) >= 100 and max(height, width) < 1.3 * min(height, width):
        # Rounding moves each side by half a pixel at most.
        area, ratio = region.height * region.width, region.width / region.height
        assert 0.07 * height * width <= area <= 1.01 * height * width
        assert 0.75 * 0.94 <= ratio <= 4 / 3 * 1.06


def test_random_resized_crop_has_uniform_area_and_log_uniform_ratio():
    crop = transforms.RandomResizedCrop(8, area=(0.1, 0.5))
    regions = [
        crop.region(1000, 1000, randomness.uniforms(0, 0, example, crop.num_draws))
        for example in range(4000)
    ]
    areas = np.array([r.height * r.width for r in regions]) / 1e6
    ratios = np.log([r.width / r.height for r in regions])
    np.testing.assert_allclose(
        np.quantile(areas, [0, 0.25, 0.5, 0.75, 1]), [0.1, 0.2, 0.3, 0.4, 0.5], atol=0.012
    )
    limit = math.log(4 / 3)
    np.testing.assert_allclose(
        np.quantile(ratios, [0, 0.25, 0.5, 0.75, 1]), limit * np.linspace(-1, 1, 5), atol=0.02
    )
    free = np.array([r.top / (1000 - r.height) for r in regions])
    np.testing.assert_allclose(np.quantile(free, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.04)


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10)])
def test_random_resized_crop_of_a_strip_falls_back_to_its_centre(size):
    crop = transforms.RandomResizedCrop(8, area=(1.0, 1.0))
    region = crop.region(*size, randomness.uniforms(0, 0, 0, crop.num_draws))
    assert min(region.height, region.width) == 10
    assert max(region.height, region.width) == 13
    assert abs(region.top + region.height / 2 - size[0] / 2) <= 0.5
    assert abs(region.left + region.width / 2 - size[1] / 2) <= 0.5


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        ("resize_short(256)", (375, 500), (256, 341)),
        ("resize_short(256)", (500, 375), (341, 256)),
        ("resize_short(256) | center_crop(224)", (375, 500), (224, 224)),
        ("resize(448, 400)", (375, 500), (448, 400)),
        ("resized_center_crop(96, 0.875, 'bicubic')", (375, 500), (96, 96)),
        ("resize_short(64) | center_crop(100)", (375, 500), (100, 100)),
        ("", (3, 4), (3, 4)),
    ],
)
def test_sizes_are_known_before_and_right_after(text, size, expected):
    pipeline = transforms.parse(text, training=False)
    assert pipeline.output_size(size) == expected
    assert pipeline(batch(*size, count=1), np.zeros((1, 0))).shape == (1, *expected, 3)


def test_test_time_transform_equals_the_published_one():
    """As torchvision does it with Pillow: resize the short side, cut the centre."""
    image = photograph(375, 500)
    data = jpeg(image)
    pipeline = transforms.parse("resize_short(256) | center_crop(224)", training=False)
    picture = Image.open(io.BytesIO(data)).resize((341, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(picture)[16:240, 58:282]
    np.testing.assert_array_equal(pipeline.decode(data, np.zeros(0)), expected)


def test_transform_of_the_tensorflow_code():
    """The central square of 7/8 of the short side, by a bicubic filter."""
    image = photograph(375, 500)
    pipeline = transforms.parse("resized_center_crop(224, 0.875, 'bicubic')", training=False)
    picture = Image.fromarray(image).crop((86, 24, 86 + 328, 24 + 328))
    expected = np.asarray(picture.resize((224, 224), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(pipeline(image[None], np.zeros((1, 0)))[0], expected)


def test_color_jitter_takes_ranges():
    image, draws = photograph(20, 30)[None], np.array([[0.3, 0.6, 0.9, 0.5]])
    by_range = transforms.ColorJitter((0.6, 1.4), (1.0, 1.0), (0.6, 1.4))
    by_strength = transforms.ColorJitter(0.4, 0.0, 0.4)
    np.testing.assert_array_equal(by_range(image, draws), by_strength(image, draws))
    fixed = transforms.ColorJitter(0.0, 0.0, (0.6, 0.6))
    grey = image @ np.array([0.299, 0.587, 0.114])
    expected = 0.6 * image + 0.4 * grey[..., None]
    np.testing.assert_allclose(fixed(image, draws), expected, atol=1.01)


def test_center_crop_pads_what_is_too_small():
    image = batch(5, 20, 1)
    cropped = transforms.CenterCrop(9)(image, np.zeros((1, 0)))[0]
    np.testing.assert_array_equal(cropped[2:7], image[0, :, 6:15])
    assert not cropped[:2].any() and not cropped[7:].any()


def test_views_are_crops_and_mirror_images():
    images = batch(8, 12, 2)
    views = transforms.parse("ten_crop(6)", training=False)(images, np.zeros((2, 0)))
    assert views.shape == (2, 10, 6, 6, 3)
    corners = [(0, 0), (0, 6), (2, 0), (2, 6), (1, 3)]
    for view, (top, left) in enumerate(corners):
        crop = images[:, top : top + 6, left : left + 6]
        np.testing.assert_array_equal(views[:, view], crop)
        mirrored = images[:, :, ::-1][:, top : top + 6, left : left + 6]
        np.testing.assert_array_equal(views[:, view + 5], mirrored)
    mirrored = transforms.parse("mirror_views", training=False)(images, np.zeros((2, 0)))
    np.testing.assert_array_equal(mirrored, np.stack([images, images[:, :, ::-1]], 1))


def test_mirror_views_of_odd_margins_are_mirrored_before_they_are_cut():
    images = batch(6, 9, 2)
    views = transforms.parse("mirror_views(6)", training=False)(images, np.zeros((2, 0)))
    np.testing.assert_array_equal(views[:, 0], images[:, :, 2:8])
    np.testing.assert_array_equal(views[:, 1], images[:, :, ::-1][:, :, 2:8])
    tenth = transforms.parse("ten_crop(6)", training=False)(images, np.zeros((2, 0)))[:, 9]
    np.testing.assert_array_equal(tenth, views[:, 1])


@pytest.mark.parametrize("which", ["brightness", "contrast", "saturation"])
def test_color_jitter_does_what_pillow_does(which):
    names = ["brightness", "contrast", "saturation"]
    enhance = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    jitter = transforms.ColorJitter(**{name: 0.4 * (name == which) for name in names})
    image = photograph(40, 50)
    for draw in (0.0, 0.3, 0.9):
        got = jitter(image[None], np.full((1, 4), draw))[0].astype(int)
        factor = 0.6 + 0.8 * draw
        expected = enhance[names.index(which)](Image.fromarray(image)).enhance(factor)
        error = got - np.asarray(expected)
        assert np.abs(error).max() <= 1
        assert np.abs(error.mean()) < 0.02  # 0.35 where levels are rounded
        assert np.abs(got - image).max() > 10


def test_color_jitter_applies_its_three_changes_in_every_order():
    image = photograph(20, 30)
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4)
    draws = np.array([[0.9, 0.1, 0.8, (order + 0.5) / 6] for order in range(6)])
    results = jitter(np.repeat(image[None], 6, 0), draws)
    assert len(np.unique(results.reshape(6, -1), axis=0)) >= 3
    untouched = transforms.ColorJitter(0, 0, 0)(image[None], draws[:1])
    np.testing.assert_array_equal(untouched[0], image)


def test_lighting_shifts_along_the_principal_axes():
    lighting = transforms.Lighting(0.1)
    grey = np.full((4000, 1, 1, 3), 128, np.uint8)
    shifted = lighting(grey, randomness.epoch_uniforms(0, 0, 4000, 3))[:, 0, 0] / 255.0
    vectors, values = lighting.eigenvectors, lighting.eigenvalues
    covariance = vectors @ np.diag((0.1 * values) ** 2) @ vectors.T
    rounding = np.eye(3) / 12 / 255**2
    np.testing.assert_allclose(np.cov(shifted.T), covariance + rounding, rtol=0.1, atol=1e-6)
    np.testing.assert_allclose(shifted.mean(0), 128 / 255, atol=1e-3)
    np.testing.assert_array_equal(transforms.Lighting(0)(grey[:2], np.zeros((2, 3))), grey[:2])


def augmented(name, image, magnitude, sign):
    """What RandAugment makes of an image when it draws one change."""
    which = (list(CHANGES).index(name) + 0.5) / len(CHANGES)
    draws = np.array([[which, 0.2 if sign > 0 else 0.7]])
    return transforms.RandAugment(1, magnitude)(image[None], draws)[0]


def test_randaugment_displaces():
    """By the largest shear of 0.3, shift of 150/331 of the side, rotation of 30°."""
    rows, columns = np.mgrid[0:33, 0:33]
    image = np.repeat((4 * rows + 3 * columns + 1).astype(np.uint8)[..., None], 3, 2)
    for sign in (1, -1):
        for name, (down, right) in {"translate_y": (14, 0), "translate_x": (0, 14)}.items():
            expected = np.zeros_like(image)
            inside = (slice(max(0, -sign * k), 33 - max(0, sign * k)) for k in (down, right))
            shifted = np.roll(image, (-sign * down, -sign * right), (0, 1))
            where = tuple(inside)
            expected[where] = shifted[where]
            np.testing.assert_array_equal(augmented(name, image, 30, sign), expected)
        x = np.floor(columns + 0.5 + sign * 0.3 * (rows + 0.5)).astype(int)
        sheared = np.where((x >= 0) & (x < 33), image[rows, x.clip(0, 32), 0], 0)
        found = augmented("shear_x", image, 30, sign)[..., 0]
        assert (found == sheared).mean() > 0.97  # Pillow counts in fixed point
        transposed = augmented("shear_y", image.transpose(1, 0, 2), 30, sign)
        np.testing.assert_array_equal(transposed.transpose(1, 0, 2)[..., 0], found)
        turned = Image.fromarray(image).rotate(sign * 30)
        np.testing.assert_array_equal(augmented("rotate", image, 30, sign), np.asarray(turned))


def test_randaugment_changes_levels():
    image = photograph(20, 30)
    for name, enhancer in {
        "brightness": ImageEnhance.Brightness,
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "sharpness": ImageEnhance.Sharpness,
    }.items():
        for sign in (1, -1):
            expected = enhancer(Image.fromarray(image)).enhance(1 + sign * 0.27)
            np.testing.assert_array_equal(augmented(name, image, 9, sign), np.asarray(expected))
    np.testing.assert_array_equal(augmented("posterize", image, 30, 1), image & 0xF0)
    np.testing.assert_array_equal(augmented("posterize", image, 9, 1), image & 0xFE)
    threshold = 255 * (1 - 9 / 30)
    solarized = np.where(image < threshold, image, 255 - image)
    np.testing.assert_array_equal(augmented("solarize", image, 9, 1), solarized)
    np.testing.assert_array_equal(augmented("identity", image, 9, 1), image)
    for name in ("autocontrast", "equalize"):
        expected = getattr(ImageOps, name)(Image.fromarray(image // 2))
        np.testing.assert_array_equal(augmented(name, image // 2, 9, 1), np.asarray(expected))


def test_randaugment_makes_each_change_with_its_probability():
    """A third draw for each decides; with probability 1 there is none, and the others stay."""
    always, half = transforms.RandAugment(2, 20), transforms.RandAugment(2, 20, 0.5)
    assert (always.num_draws, half.num_draws) == (4, 6)
    image = np.random.default_rng(0).integers(0, 256, (1, 9, 7, 3), np.uint8)
    both = always(image, np.array([[0.1, 0.2, 0.5, 0.7]]))
    np.testing.assert_array_equal(half(image, np.array([[0.1, 0.2, 0.4, 0.5, 0.7, 0.4]])), both)
    np.testing.assert_array_equal(half(image, np.array([[0.1, 0.2, 0.5, 0.5, 0.7, 0.9]])), image)


def test_randaugment_draws_each_change_equally_often():
    image = np.zeros((4000, 1, 1, 3), np.uint8)
    draws = randomness.epoch_uniforms(0, 0, 4000, 2)
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setitem(CHANGES, name, lambda p, s, sign, n=name: drawn.append((n, sign)) or p)
        transforms.RandAugment(1)(image, draws)
    counts = collections.Counter(drawn)
    assert len(counts) == 2 * len(CHANGES)
    np.testing.assert_allclose(list(counts.values()), 4000 / 28, rtol=0.3)


def test_random_erasing_fills_rectangles_of_the_areas_and_ratios():
    images = np.ones((3000, 60, 60, 3), np.uint8)
    erasing = transforms.RandomErasing(0.4, area=(0.05, 0.2), ratio=(0.5, 2), fill=(0, 7, 255))
    erased = erasing(images, draws_for(erasing, 3000))
    assert (images == 1).all()
    inside = (erased == (0, 7, 255)).all(-1)
    assert (inside | (erased == 1).all(-1)).all()
    found = inside.any((1, 2))
    np.testing.assert_allclose(found.mean(), 0.4, atol=0.03)
    heights, widths = inside.any(2).sum(1)[found], inside.any(1).sum(1)[found]
    np.testing.assert_array_equal(inside.sum((1, 2))[found], heights * widths)
    np.testing.assert_allclose(
        np.quantile(heights * widths / 3600, [0, 0.5, 1]), [0.05, 0.125, 0.2], atol=0.01
    )
    np.testing.assert_allclose(
        np.quantile(np.log(widths / heights), [0, 0.5, 1]), np.log([0.5, 1, 2]), atol=0.1
    )
    assert inside.any((0, 1)).all() and inside.any((0, 2)).all()


def test_what_does_not_fit_is_not_erased():
    image = batch(2, 50, 4)
    erasing = transforms.RandomErasing(1.0, area=(0.9, 0.9), ratio=(1, 1))
    np.testing.assert_array_equal(erasing(image, draws_for(erasing, 4)), image)


@pytest.mark.parametrize(
    "text",
    [
        "pad_crop(8, 2) | flip",
        "random_resized_crop(6) | flip | color_jitter(0.4, 0.4, 0.4) | lighting(0.1)",
        "randaugment(3, 20) | random_erasing",
    ],
)
def test_a_batch_equals_its_images_one_by_one(text):
    images = batch(8, 9, 6)
    pipeline = transforms.parse(text, training=True)
    draws = draws_for(pipeline, 6)
    alone = [pipeline(images[i : i + 1], draws[i : i + 1])[0] for i in range(6)]
    np.testing.assert_array_equal(pipeline(images, draws), alone)
    assert images.max() <= 255 and pipeline(images, draws).dtype == np.uint8


def test_only_what_is_needed_of_a_jpeg_is_decoded(monkeypatch):
    data = jpeg(photograph(900, 1200))
    decoded = []

    def load(image, *, original=codec._load):
        decoded.append(original(image))
        return decoded[-1]

    monkeypatch.setattr(codec, "_load", load)
    for size, factor in [(112, 4), (200, 2), (448, 1), (50, 8), (900, 1)]:
        pipeline = transforms.parse(f"resize_short({size})", training=False)
        small = pipeline.decode(data, np.zeros(0))
        assert decoded[-1].size == (-(-1200 // factor), -(-900 // factor))
        full = pipeline(codec.decode(data)[None], np.zeros((1, 0)))[0]
        assert np.abs(small.astype(int) - full).mean() < 1


def test_a_crop_of_a_reduced_jpeg_shows_the_same_place():
    data = jpeg(photograph(901, 1203))
    pipeline = transforms.parse("random_resized_crop(40)", training=True)
    for example in range(8):
        draws = randomness.uniforms(0, 0, example, pipeline.num_draws)
        full = pipeline(codec.decode(data)[None], draws[None])[0]
        # Half a pixel of displacement would be 5 grey levels here.
        assert np.abs(pipeline.decode(data, draws).astype(int) - full).mean() < 1


def test_what_is_fixed_can_be_done_before():
    pipeline = transforms.parse("resize(9, 8) | pad_crop(8, 1) | center_crop(6)", training=True)
    fixed, rest = pipeline.split()
    assert fixed == transforms.parse("resize(9, 8)", training=True)
    images, draws = batch(count=3), draws_for(pipeline, 3)
    np.testing.assert_array_equal(rest(fixed(images, draws[:, :0]), draws), pipeline(images, draws))
    fixed, rest = transforms.parse("center_crop(8) | ten_crop(6)", training=False).split()
    assert len(fixed.transforms) == len(rest.transforms) == 1


@pytest.mark.parametrize(
    ("text", "training", "message"),
    [
        (
            "blur(3) | flip",
            True,
            r"train_transforms: there is no transform 'blur'; .*pad_crop\(size, padding\)",
        ),
        ("__import__('os').system('x')", True, "there is no transform"),
        ("flip |", True, "cannot be read"),
        ("pad_crop(32)", True, r"pad_crop\(32\) does not fit; write pad_crop\(size, padding\)"),
        ("pad_crop(32, '4')", True, "'padding' of pad_crop is '4' but must be a whole number"),
        ("pad_crop(32.5, 4)", True, "'size' of pad_crop is 32.5 but must be a whole number"),
        ("resize_short(True)", False, "is True but must be a whole number"),
        ("resize_short(0)", False, "is 0 but must be a whole number from 1 to"),
        ("resize_short(open('x'))", False, "does not fit"),
        ("lighting(-1)", True, "is -1 but must be a number from 0 to"),
        ("random_resized_crop(224, area=(1, 0.5))", True, "must be .* in ascending order"),
        (
            "randaugment(0)",
            True,
            "'num_changes' of randaugment is 0 but must be a whole number from",
        ),
        (
            "randaugment(2, 31)",
            True,
            "'magnitude' of randaugment is 31 but must be a number from 0",
        ),
        ("randaugment", False, "eval_transforms: randaugment is random"),
        ("random_erasing(fill=(0, 0, 256))", True, "'fill' of random_erasing is .0, 0, 256. but"),
        ("random_resized_crop(224, scale=(0.5, 1))", True, "does not fit"),
        ("ten_crop(224)", True, "ten_crop makes views for evaluation"),
        ("flip", False, "eval_transforms: flip is random"),
        ("mirror_views | center_crop(8)", False, "must stand last"),
    ],
)
def test_ill_formed_transforms_are_refused_in_a_sentence(text, training, message):
    with pytest.raises(UsageError, match=message) as refusal:
        transforms.parse(text, training=training)
    assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")


@dataclasses.dataclass(frozen=True)
class Brighten(transforms.Transform):
    """Adds up to `most` levels."""

    most: Annotated[int, within(0, 100)] = 10
    num_draws: ClassVar[int] = 1

    def __call__(self, images, draws):
        return images + (self.most * draws[:, :, None, None]).astype(np.uint8)

    def output_size(self, size):
        return size


class Float(Brighten):
    def __call__(self, images, draws):
        return images / 2


class Abstract(transforms.Transform):
    pass


def test_own_transforms_stand_among_the_others():
    pipeline = transforms.parse(
        f"pad_crop(6, 1) | {__name__}:Brighten(most=20)|flip", training=True
    )
    pad, own, flip = pipeline.transforms
    assert own == Brighten(20) and pipeline.num_draws == 4
    images, draws = batch(6, 6) // 2, draws_for(pipeline, 5)
    expected = flip(own(pad(images, draws[:, :2]), draws[:, 2:3]), draws[:, 3:])
    np.testing.assert_array_equal(pipeline(images, draws), expected)
    assert transforms.parse(f"{__name__}:Brighten", training=True).transforms == (Brighten(),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"flip | {__name__}:Brighten(200)", r"'most' of tests.*:Brighten is 200 but must be a"),
        (
            f"{__name__}:Brighten(1, 2)",
            r"tests.*:Brighten\(1, 2\) does not fit; write tests.*:Brig",
        ),
        (f"{__name__}:Nothing", "train_transforms: transform 'tests.*:Nothing' cannot be imported"),
        ("no_such:Blur | flip", "transform 'no_such:Blur' cannot be imported: No module named"),
        (
            "os:getcwd",
            "os:getcwd is no transform; name a subclass of sop.data.transforms.Transform",
        ),
        (f"{__name__}:Abstract", "must be a frozen dataclass with __call__ and output_size"),
        ("a:b:c | flip", "cannot be read"),
        ("flip(a:b)", "cannot be read"),
    ],
)
def test_own_transforms_that_cannot_be_used_are_refused(text, message):
    with pytest.raises(UsageError, match=message) as refusal:
        transforms.parse(text, training=True)
    assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")


def test_own_transforms_are_random_or_not_as_they_say():
    with pytest.raises(UsageError, match="eval_transforms: Brighten is random"):
        transforms.parse(f"{__name__}:Brighten", training=False)
    pipeline = transforms.parse(f"{__name__}:Float", training=True)
    with pytest.raises(UsageError, match="The transform Float makes float64 of images of uint8"):
        pipeline(batch(), np.zeros((5, 1)))


def test_arguments_may_be_named():
    named = transforms.parse("random_resized_crop(size=8, area=(0.2, 1))", training=True)
    assert named.transforms == (transforms.RandomResizedCrop(8, (0.2, 1)),)
    listed = transforms.parse("random_resized_crop(8, [0.2, 1])", training=True)
    assert listed == named and hash(listed) == hash(named)
