"""Boxes, matching, suppression and SSD's losses are torchvision's, and stand what breaks them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sop.detection import anchors, boxes, ssd
from sop.detection.detections import best, of_all_classes, of_each_class
from sop.detection.matching import match
from sop.detection.nms import suppress
from sop.detection.roi_align import levels, roi_align
from sop.detection.sampling import hard_negatives, random_sample
from tests.golden import detection as golden

GOLDEN = np.load(golden.FILE)
GIVEN = golden.arrays()
DTYPES = (np.float64, np.float32)


@pytest.fixture(params=DTYPES, ids=lambda dtype: dtype.__name__)
def given(request):
    """The arrays and how near to torchvision's float64 their type must come."""
    double = request.param is np.float64
    with jax.enable_x64(double):
        cast = {
            name: jnp.asarray(x, request.param if x.dtype == np.float64 else np.int32)
            for name, x in GIVEN.items()
        }
        yield cast, 1e-8 if double else 1e-4


def near(found, wanted, tolerance):
    """Relative to the largest."""
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def test_overlaps(given):
    arrays, tolerance = given
    near(boxes.iou(arrays["anchors"], arrays["boxes"][0]), GOLDEN["iou"], tolerance)


def test_coder(given):
    arrays, tolerance = given
    some = arrays["anchors"][: golden.OBJECTS]
    encoded = boxes.encode(arrays["boxes"][0], some, golden.DEVIATIONS)
    near(encoded, GOLDEN["encoded"], tolerance)
    near(boxes.decode(encoded, some, golden.DEVIATIONS), GIVEN["boxes"][0], tolerance)
    decoded = boxes.decode(arrays["deltas"][0], arrays["anchors"], golden.DEVIATIONS)
    near(decoded, GOLDEN["decoded"], tolerance)


def test_coder_of_boxes_whose_last_pixel_is_inside():
    """One pixel is a box with an area there, and corners come back as they were."""
    pixel = jnp.array([[3.0, 4.0, 3.0, 4.0]])
    assert boxes.area(pixel, inclusive=True) == 1 and boxes.area(pixel) == 0
    anchor = jnp.array([[1.0, 1.0, 8.0, 6.0]])
    deltas = boxes.encode(pixel, anchor, golden.DEVIATIONS, inclusive=True)
    back = boxes.decode(deltas, anchor, golden.DEVIATIONS, inclusive=True)
    np.testing.assert_allclose(back, pixel, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "rpn",
            {"positive": 0.7, "negative": 0.3, "least": 0.0, "all_best": True, "own": True},
        ),
        ("roi", {"positive": 0.5, "negative": 0.5}),
    ],
)
def test_matches(name, options):
    """−1 is background there, −2 left out."""
    overlaps = boxes.iou(GIVEN["anchors"], GIVEN["boxes"][0])
    found = match(overlaps, jnp.ones(golden.OBJECTS, bool), **options)
    said = np.where(found.positive, found.index, np.where(found.negative, -1, -2))
    np.testing.assert_array_equal(said, GOLDEN[name])


def test_matches_of_ssd():
    overlaps = boxes.iou(GIVEN["anchors"], GIVEN["boxes"])
    valid = jnp.ones((golden.IMAGES, golden.OBJECTS), bool)
    found = match(overlaps, valid, positive=0.5, negative=0.5, least=0.0)
    np.testing.assert_array_equal(jnp.where(found.positive, found.index, -1), GOLDEN["ssd"])


def test_objects_that_only_fill_up_are_matched_by_none():
    overlaps = boxes.iou(GIVEN["anchors"], GIVEN["boxes"][0])
    valid = jnp.arange(golden.OBJECTS) < 2
    found = match(overlaps, valid, positive=0.5, negative=0.5, least=0.0)
    alone = match(overlaps[:, :2], valid[:2], positive=0.5, negative=0.5, least=0.0)
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_array_equal(one, other)
    none = match(overlaps, valid & False, positive=0.5, negative=0.5, least=0.0)
    assert not none.positive.any() and none.negative.all()


def test_suppression():
    """In turn through the classes, as torchvision's batched one."""
    order = np.argsort(-GIVEN["scores"])
    shifted = GIVEN["many"] + 1000 * GIVEN["classes"][:, None]
    valid = jnp.ones(golden.SUPPRESSED, bool)
    kept = jax.jit(suppress, static_argnums=2)(jnp.asarray(shifted[order]), valid, 0.4)
    np.testing.assert_array_equal(order[np.asarray(kept)], GOLDEN["kept"])


def test_a_chain_of_boxes_is_suppressed_in_turn():
    """Each hides the next alone, so that every second one stays: the longest way of the loop."""
    left = np.arange(64.0) * 4
    chain = np.stack([left, 0 * left, left + 10, 0 * left + 10], -1)
    kept = suppress(jnp.asarray(chain, jnp.float32), jnp.ones(64, bool), 0.4)
    np.testing.assert_array_equal(kept, np.arange(64) % 2 == 0)


@pytest.mark.parametrize("highest", [of_each_class, of_all_classes])
def test_best(highest):
    """A box of two classes stays for both, a second one of a class goes, what is low is no find."""
    found = best(
        jnp.array([[0.0, 0, 10, 10], [1, 0, 10, 10], [50, 50, 60, 60]])[:, None],
        jnp.array([[0.9, 0.6], [0.8, 0.1], [0.01, 0.7]]),
        highest=highest,
        threshold=0.05,
        overlap=0.5,
        candidates=10,
        detections=5,
    )
    assert found["valid"].tolist() == [True] * 3 + [False] * 2
    np.testing.assert_allclose(found["scores"], [0.9, 0.7, 0.6, 0, 0])
    assert found["labels"].tolist() == [0, 1, 1, 0, 0]
    assert found["boxes"][1].tolist() == [50, 50, 60, 60] and not found["boxes"][3:].any()


def test_roi_align(given):
    arrays, tolerance = given

    def cut(maps, aligned):
        level = jnp.zeros(len(arrays["regions"]), jnp.int32)
        smallest = 0.0 if aligned else 1.0
        return roi_align(
            [maps], arrays["regions"], level, [golden.STRIDE], 5, aligned=aligned, smallest=smallest
        )

    for aligned, name in ((False, "cut"), (True, "cut_aligned")):
        found = cut(arrays["map"], aligned)
        near(found.transpose(0, 3, 1, 2), GOLDEN[name], tolerance)
    grad = jax.grad(lambda maps: (cut(maps, False) ** 2).sum())(arrays["map"])
    near(grad.transpose(2, 0, 1)[None], GOLDEN["map_gradient"], tolerance)


def test_levels():
    """224² pixels are of the third level of strides 4, 8, 16, 32; each level has twice the side."""
    sides = jnp.array([1.0, 111, 113, 223, 225, 447, 449, 9999])
    boxes_ = jnp.stack([0 * sides, 0 * sides, sides, sides], -1)
    assert levels(boxes_, 4, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert levels(jnp.array([[0, 0, 448.0, 112.0]]), 4, 4).tolist() == [2]  # the area counts


def test_groups_hide_nothing_of_one_another():
    same = jnp.zeros((3, 4)) + jnp.array([0, 0, 9, 9.0])
    kept = suppress(same, jnp.ones(3, bool), 0.5, groups=jnp.array([0, 1, 0]))
    assert kept.tolist() == [True, True, False]


def test_whose_scores_compete():
    """Of each class or of all together; the same where all pairs are candidates."""
    draw = np.random.default_rng(0)
    options = {"threshold": 0.3, "overlap": 0.4, "candidates": 100, "detections": 30}
    some = jnp.asarray(golden.boxes(draw, 20, 3))
    scores = jnp.asarray(draw.uniform(size=(20, 3)))
    one, other = (partial(best, some, scores, highest=f) for f in (of_all_classes, of_each_class))
    found, wanted = one(**options), other(**options)
    assert wanted["valid"].sum() > 10
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name])
    options["candidates"] = 2
    assert one(**options)["valid"].sum() <= 2 < other(**options)["valid"].sum()


@pytest.mark.parametrize(("positives", "negatives"), [(2, 50), (50, 3), (0, 0), (40, 40), (0, 9)])
def test_random_sample(positives, negatives):
    """As many as there are and no more, never one twice, each as likely as every other."""
    is_positive = jnp.arange(100) < positives
    is_negative = ~is_positive & (jnp.arange(100) < positives + negatives)
    sample = jax.jit(random_sample, static_argnums=(3, 4))
    keys = jax.random.split(jax.random.key(0), 200)
    drawn = jax.vmap(lambda key: sample(key, is_positive, is_negative, 20, 0.25))(keys)
    count = min(positives, 5)
    total = min(count + negatives, 20)
    assert (drawn.positive.sum(-1) == count).all() and (drawn.valid.sum(-1) == total).all()
    assert (drawn.positive == (jnp.arange(20) < count)).all()  # these come first
    taken = np.asarray(jnp.where(drawn.valid, drawn.index, -1))
    for row in taken[:20]:
        row = row[row >= 0]
        assert len(set(row)) == len(row) == total
        assert is_positive[row[:count]].all() and is_negative[row[count:]].all()
    if positives == 40:
        often = np.bincount(taken[taken >= 0], minlength=80)[:40] / 200
        assert abs(often - 5 / 40).max() < 5 * np.sqrt(0.125 * 0.875 / 200)


def test_random_sample_of_fewer_boxes_than_are_drawn():
    all_of_them = jnp.ones(3, bool)
    drawn = random_sample(jax.random.key(0), all_of_them, ~all_of_them, 8, 0.25)
    assert drawn.valid.tolist() == [True] * 2 + [False] * 6 and drawn.index.shape == (8,)


def test_hard_negatives_are_the_worst():
    losses = jnp.array([5.0, 1.0, 4.0, 3.0, 2.0, 9.0])
    positive = jnp.array([False] * 5 + [True])
    taken = hard_negatives(losses, positive, ~positive & (losses != 4), 2)
    assert taken.tolist() == [True, False, False, True, False, False]


def test_losses_and_gradients_of_ssd(given):
    arrays, tolerance = given
    targets = {name: arrays[name] for name in ("boxes", "labels")}
    targets["valid"] = jnp.ones(targets["labels"].shape, bool)

    def total(logits, deltas):
        found = ssd.losses(logits, deltas, arrays["anchors"], targets)
        return sum(found.values()), jnp.stack([found["classification"], found["box"]])

    gradient = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    (of_logits, of_deltas), found = gradient(arrays["logits"], arrays["deltas"])
    near(found, GOLDEN["losses"], tolerance)
    near(of_logits, GOLDEN["logits_gradient"], tolerance)
    near(of_deltas, GOLDEN["deltas_gradient"], tolerance)


def test_anchors_of_ssd300():
    """8,732 of them, as published; those of the first map at its first position by hand."""
    shapes = (38, 19, 10, 5, 3, 1)
    sizes = anchors.ssd_sizes(300, 6, 0.1, 0.2, 0.9)
    ratios = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    every = [
        anchors.grid(anchors.ssd_base(*size, ratio), (n, n), (300 / n, 300 / n), 0.5)
        for n, size, ratio in zip(shapes, sizes, ratios, strict=True)
    ]
    assert sum(map(len, every)) == 8732
    centre, root = 300 / 38 / 2, 2**0.5
    side = (30 * 60) ** 0.5
    wanted = [(30, 30), (side, side), (30 * root, 30 / root), (30 / root, 30 * root)]
    for found, (width, height) in zip(every[0], wanted, strict=False):
        half = np.array([width, height]) / 2
        np.testing.assert_allclose(found, [*(centre - half), *(centre + half)], rtol=1e-5)
