"""Mask R-CNN is torchvision's, and stands the objects that break detectors."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import digit_scenes
from sop.detection import anchors, create_detector, rcnn, roi_heads, rpn
from sop.detection.boxes import iou
from sop.detection.roi_heads import mask_targets
from sop.errors import UsageError
from sop.models.features import pyramid
from sop.torch_weights import convert, to_state_dict
from sop.training.detection import Detection
from tests.detection.small import OBJECTS, targets_of
from tests.golden import detection as arrays
from tests.golden import rcnn as golden

GOLDEN = np.load(golden.FILE)
LOSSES = ("rpn_classification", "rpn_box", "classification", "box")


@pytest.fixture(scope="module")
def state_dict():
    lines = (line.split() for line in GOLDEN["names"])
    shapes = {name: tuple(map(int, shape.split(","))) for name, shape in lines}
    return {name: golden.weight(name, shape) for name, shape in shapes.items()}


@pytest.fixture(params=(np.float64, np.float32), ids=lambda dtype: dtype.__name__)
def network(request, state_dict):
    """Detector, its variables, images, and how near to torchvision's float64 it must come."""
    double = request.param is np.float64
    with jax.enable_x64(double):
        variables = convert(state_dict, golden.CONFIG)
        detector = create_detector(golden.CONFIG, dtype=request.param)
        variables = jax.tree.map(lambda x: jnp.asarray(x, request.param), variables)
        images = jnp.asarray(golden.images(), request.param)
        yield detector, variables, images, 1e-8 if double else 1e-4


def near(found, wanted, tolerance):
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def test_losses_and_gradients(network):
    detector, variables, images, tolerance = network
    boxes, labels = golden.objects()
    targets = {
        "boxes": jnp.asarray(boxes, images.dtype),
        "labels": jnp.asarray(labels, jnp.int32),
        "valid": jnp.ones(labels.shape, bool),
        "masks": jnp.zeros((*labels.shape, 56, 56), jnp.uint8),
    }

    # Of the backbone's in float32 alone: XLA has no fast convolution in float64.
    is_whole = images.dtype == np.float32
    wanted = {k: v for k, v in variables["params"].items() if is_whole or k != "features"}

    @jax.jit
    def run(params):
        def loss(params):
            given = {**variables, "params": {**variables["params"], **params}}
            rngs = {"sampling": jax.random.key(0)}
            losses = detector.apply(given, images, targets, train=True, rngs=rngs)
            return sum(losses[name] for name in LOSSES), losses

        return jax.grad(loss, has_aux=True)(params)

    grads, losses = run(wanted)
    found = np.array([losses[name] for name in LOSSES])
    near(found, GOLDEN["losses"], tolerance)
    grads = to_state_dict({"params": grads}, golden.CONFIG)
    for name in golden.GRADIENTS[0 if is_whole else 1 :]:
        near(grads[name], GOLDEN[name], tolerance)


def test_detections(network):
    detector, variables, images, tolerance = network
    found = jax.jit(detector.apply)(variables, images)
    for row in range(len(images)):
        wanted = {key: GOLDEN[f"{key}{row}"] for key in ("boxes", "scores", "labels", "masks")}
        assert found["valid"][row].all()
        np.testing.assert_array_equal(found["labels"][row] + 1, wanted["labels"])
        near(found["boxes"][row], wanted["boxes"], tolerance)
        near(found["scores"][row], wanted["scores"], tolerance)
        near(found["masks"][row], wanted["masks"][:, 0], tolerance)


SMALL = {
    "name": "mask_rcnn",
    "base_levels": 2,
    "fixed_statistics": False,
    "width": 8,
    "hidden": 16,
    "mask_width": 8,
    "anchor_samples": 32,
    "samples": 16,
    "proposals": 40,
    "detections": 10,
}
CONFIG = {"backbone": "resnet8_cifar", "num_classes": 3, "detector": SMALL}


@pytest.fixture(scope="module")
def start():
    """Images, and initial variables of the small detectors."""
    images = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
    return images, jax.jit(create_detector(CONFIG).init)(jax.random.key(0), images)


@pytest.fixture(scope="module", params=(False, True), ids=("", "inclusive"))
def small(request, start):
    """(detector, variables, images, its `apply`, gradient of the losses' sum and the losses)"""
    detector = create_detector({**CONFIG, "detector": {**SMALL, "inclusive": request.param}})
    images, variables = start

    @jax.jit
    def gradient(params, targets):
        def loss(params):
            losses, _ = detector.apply(
                {**variables, "params": params},
                images,
                targets,
                train=True,
                mutable=["batch_stats"],
                rngs={"sampling": jax.random.key(1)},
            )
            return sum(losses.values()), losses

        return jax.value_and_grad(loss, has_aux=True)(params)

    return detector, variables, images, jax.jit(detector.apply), gradient


def targets_with_masks(*given, **more):
    targets = targets_of(*given, **more)
    shape = (*targets["labels"].shape, 56, 56)
    return {**targets, "masks": jnp.full(shape, 255, jnp.uint8)}


@pytest.mark.parametrize("name", OBJECTS)
def test_losses_and_gradients_are_finite(name, small):
    _, variables, _, _, gradient = small
    (_, losses), grads = gradient(variables["params"], targets_with_masks(*OBJECTS[name]))
    for leaf in jax.tree.leaves((losses, grads)):
        assert jnp.isfinite(leaf).all()
    # Without objects all is background, which is learned as well.
    assert losses["classification"] > 0 and losses["rpn_classification"] > 0
    answered = name in ("one", "partly outside", "tiny")
    assert (losses["box"] > 0) == (losses["mask"] > 0) == answered


def test_parameters_of_any_size_give_finite_numbers(small):
    _, variables, images, apply, gradient = small
    for scale in (0.0, 1e3, 1e20):
        params = jax.tree.map(lambda x, s=scale: x * s, variables["params"])
        found = apply({**variables, "params": params}, images)
        if scale < 1e20:  # there the logits themselves overflow
            (_, losses), grads = gradient(params, targets_with_masks(*OBJECTS["one"]))
            assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((losses, grads)))
        for name in ("boxes", "scores"):
            assert jnp.isfinite(found[name]).all(), (scale, name)
        assert (found["boxes"] >= 0).all() and (found["boxes"] <= 32).all()


def test_padding_is_cut_off(small):
    _, variables, images, apply, _ = small
    found = apply(variables, images, sizes=jnp.array([[10.0, 20.0]]))
    assert found["masks"].shape == (1, 10, 28, 28) and found["valid"].any()
    assert found["boxes"][..., 2].max() <= 20 and found["boxes"][..., 3].max() <= 10


@pytest.mark.parametrize("small", [False], indirect=True)
def test_what_is_learned_is_found(small):
    """Eighty steps on one image: its object is the first detection, with its half of the box."""
    detector, variables, images, _, gradient = small
    targets = targets_with_masks([[4.0, 6.0, 22.0, 24.0]], True)
    targets["masks"] = targets["masks"].at[..., 28:, :].set(0)
    params, tx = variables["params"], optax.adam(3e-3)
    state = tx.init(params)

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state

    for _ in range(80):
        params, state = step(params, state, gradient(params, targets)[1])
    # With the statistics of the batch, as in these steps.
    apply = jax.jit(partial(detector.apply, train=True, mutable=["batch_stats"]))
    found, _ = apply({**variables, "params": params}, images)
    np.testing.assert_allclose(found["boxes"][0, 0], targets["boxes"][0, 0], atol=2)
    assert found["labels"][0, 0] == 0 and found["scores"][0, 0] > 0.5
    mask = found["masks"][0, 0]
    assert mask[:12].mean() > 0.8 and mask[16:].mean() < 0.2


def test_mask_targets():
    """A proposal beside, around and inside an object, of whose mask the upper half is set."""
    mask = jnp.zeros((56, 56)).at[:28].set(1)
    box = jnp.array([10.0, 10.0, 30.0, 30.0])
    proposals = jnp.array([[10.0, 10, 30, 30], [40, 40, 50, 50], [0, 0, 40, 40], [12, 18, 16, 22]])
    found = mask_targets(
        jnp.broadcast_to(mask, (4, 56, 56)), jnp.broadcast_to(box, (4, 4)), proposals, 28
    )
    assert (found[0] == (jnp.arange(28) < 14)[:, None]).all()
    assert not found[1].any()
    rows, columns = found[2].any(1), found[2].any(0)
    # 40 pixels are 28 bins: those with their middles in [10, 20) down and in [10, 30) across.
    assert rows.sum() == 7 and columns.sum() == 14 and rows[7] and columns[7]
    assert (found[3] == (jnp.arange(28) < 14)[:, None]).all()


def test_mask_losses_are_of_each_positives_own_object():
    """Of three rows one answers for the first object, one for the second, one for none."""
    boxes = jnp.array([[[0.0, 0, 28, 28], [0, 0, 28, 28]]])
    masks = jnp.zeros((1, 2, 56, 56), jnp.uint8).at[0, 0, :28].set(255).at[0, 1, :, :28].set(255)
    drawn = roi_heads.Drawn(
        jnp.zeros((1, 3, 4)) + jnp.array([0, 0, 28, 28.0]),
        jnp.array([[0, 1, 0]]),
        jnp.array([[2, 1, 0]]),
        jnp.array([[True, True, False]]),
        jnp.ones((1, 3), bool),
    )
    upper, left = jnp.zeros((2, 28, 28)).at[0, :14].set(1).at[1, :, :14].set(1)
    draw = np.random.default_rng(0)
    logits = jnp.asarray(draw.standard_normal((1, 3, 28, 28, 3)), jnp.float32)
    found = roi_heads.mask_losses(logits, drawn, boxes, masks)["mask"]
    first = optax.sigmoid_binary_cross_entropy(logits[0, 0, ..., 2], upper)
    second = optax.sigmoid_binary_cross_entropy(logits[0, 1, ..., 1], left)
    np.testing.assert_allclose(found, (first.mean() + second.mean()) / 2, rtol=1e-6)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-8), (np.float32, 1e-4)])
def test_mask_losses_are_torchvisions(dtype, tolerance):
    given, wanted = arrays.arrays(), np.load(arrays.FILE)
    masks = 255 * arrays.masks()[None, :, ::2, ::2]
    with jax.enable_x64(dtype is np.float64):
        matched = jnp.asarray(given["matched"])[None]
        classes = jnp.asarray(given["mask_classes"])[matched]
        proposals, logits = (
            jnp.asarray(given[k], dtype)[None] for k in ("proposals", "mask_logits")
        )
        yes = jnp.ones(matched.shape, bool)
        drawn = roi_heads.Drawn(proposals, matched, classes, yes, yes)
        image = jnp.broadcast_to(jnp.array([0, 0, 112, 112], dtype), (1, 2, 4))
        found, gradient = jax.value_and_grad(
            lambda logits: roi_heads.mask_losses(logits, drawn, image, jnp.asarray(masks))["mask"]
        )(logits)
    np.testing.assert_allclose(found, wanted["mask_loss"], rtol=tolerance)
    near(np.asarray(gradient)[0], wanted["mask_gradient"], tolerance)


def test_old_mmdetections_best_anchor_is_one_in_the_image():
    """The anchor that overlaps the object most reaches beyond the image: the next one is its."""
    base = anchors.on_pixels(anchors.pyramid_base(32.0, (0.5, 1.0, 2.0)), (4, 4))
    places = anchors.grid(base, (32, 32), (4, 4))
    targets = {
        "boxes": jnp.array([[[0.0, 0, 29, 19]]]),
        "labels": jnp.zeros((1, 1), jnp.int32),
        "valid": jnp.ones((1, 1), bool),
    }
    overlaps = np.asarray(iou(jnp.asarray(places), targets["boxes"][0], True))[:, 0]
    inside = (places[:, :2] >= 0).all(1) & (places[:, 2:] < 128).all(1)
    best = np.flatnonzero(inside & (overlaps == overlaps[inside].max()))
    assert overlaps.max() > overlaps[best[0]] > 0.3

    def gradient(logits):
        found = rpn.losses(
            jax.random.split(jax.random.key(0), 1),
            logits[None],
            jnp.zeros((1, len(places), 4)),
            targets,
            jnp.full((1, 2), 128.0),
            anchors=places,
            samples=256,
            least=0.3,
            inclusive=True,
        )
        return found["rpn_classification"]

    grads = np.asarray(jax.jit(jax.grad(gradient))(jnp.zeros(len(places))))
    np.testing.assert_array_equal(np.flatnonzero(grads < 0), best)  # pushed up
    assert not grads[~inside].any() and (grads > 0).sum() == 256 - len(best)


@pytest.mark.parametrize(("inclusive", "answer"), [(False, 0), (True, 1)])
def test_old_mmdetections_objects_have_their_best_proposal(inclusive, answer):
    """Of two objects the second has no other proposal, as old mmdetection assigned them."""
    boxes = jnp.array([[0.0, 0, 19, 19], [0, 0, 9, 19]])
    drawn = roi_heads.draw(
        jax.random.key(0),
        jnp.array([[0.0, 0, 14, 19]]),
        jnp.ones(1, bool),
        boxes,
        jnp.array([5, 6]),
        jnp.ones(2, bool),
        samples=12,
        inclusive=inclusive,
    )
    assert drawn.positive.tolist() == drawn.valid.tolist() == [True] * 3 + [False] * 9
    said = dict(zip(map(tuple, drawn.boxes[:3].tolist()), drawn.classes[:3].tolist(), strict=True))
    assert said[(0, 0, 14, 19)] == 6 + answer
    assert said[(0, 0, 19, 19)] == 6 and said[(0, 0, 9, 19)] == 7  # each its own


@pytest.mark.parametrize("attention", ["none", "gsop"])
def test_strides_are_those_of_the_maps(attention):
    """GSoP leaves the last stage at the resolution of the one before."""
    levels = pyramid({**CONFIG, "attention": attention}, 64).values()
    strides = [level.stride for level in levels]
    assert strides == ([1, 2, 4] if attention == "none" else [1, 2, 2])
    assert rcnn._strides((64, 64), [(64 // s, 64 // s) for s in strides]) == strides
    odd = [(-(-800 // s), -(-41 // s)) for s in (4, 8, 16, 32)]
    assert rcnn._strides((800, 41), odd) == [4, 8, 16, 32]


@pytest.mark.parametrize("small", [False], indirect=True)
def test_padding_is_zero_for_the_network(small):
    """Whatever stands there in the batch."""
    detector, variables, _, _, _ = small
    config = digit_scenes.get_config("mask")
    task = Detection(config, detector)
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (1, 32, 32, 3), np.uint8)
    size = np.float32([[20, 24]])
    other = np.where((np.arange(32) < 20)[:, None, None], image, 0)
    forward = jax.jit(task.forward)
    found, again = (forward(variables, {"image": each, "size": size}) for each in (image, other))
    jax.tree.map(np.testing.assert_array_equal, found, again)


def test_half_precision_says_float32():
    detector = create_detector(CONFIG, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.bfloat16)
    variables = jax.eval_shape(lambda x: detector.init(jax.random.key(0), x), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    found = jax.eval_shape(detector.apply, variables, images)
    assert {found[name].dtype for name in ("boxes", "scores", "masks")} == {jnp.dtype("float32")}


# (pattern in torchvision's names, what stands there in other files)
FIRST_RELEASE = (
    (r"(inner|layer)_blocks\.(\d)\.0\.", r"\1_blocks.\2."),
    (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    (r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}."),
)
MMDETECTION = (
    (r"^backbone\.body\.", "backbone."),
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", r"neck.lateral_convs.\1.conv."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", r"neck.fpn_convs.\1.conv."),
    (r"^rpn\.head\.conv\.0\.0\.", "rpn_head.rpn_conv."),
    (r"^rpn\.head\.cls_logits\.", "rpn_head.rpn_cls."),
    (r"^rpn\.head\.bbox_pred\.", "rpn_head.rpn_reg."),
    (r"^roi_heads\.box_head\.fc6\.", "bbox_head.shared_fcs.0."),
    (r"^roi_heads\.box_head\.fc7\.", "bbox_head.shared_fcs.1."),
    (r"^roi_heads\.box_predictor\.cls_score\.", "bbox_head.fc_cls."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "bbox_head.fc_reg."),
    (r"^roi_heads\.mask_head\.(\d)\.0\.", r"mask_head.convs.\1.conv."),
    (r"^roi_heads\.mask_predictor\.conv5_mask\.", "mask_head.upsample."),
    (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", "mask_head.conv_logits."),
)


@pytest.mark.parametrize("rules", [(), FIRST_RELEASE, MMDETECTION], ids=["", "first", "mmdet"])
def test_weights_come_from_every_spelling_and_go_back(rules, state_dict):
    def spelled(name):
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        return name

    other = {spelled(name): value for name, value in state_dict.items()}
    assert not rules or not set(other) <= set(state_dict)
    back = to_state_dict(convert(other, golden.CONFIG), golden.CONFIG)
    assert set(back) == set(state_dict)
    for name, value in back.items():
        np.testing.assert_array_equal(value, state_dict[name].astype(np.float32))


def test_weights_of_other_detectors_are_refused(state_dict):
    ssd = {"name": "ssd", "extras": (), "ratios": ((2.0,),) * 2}
    with pytest.raises(UsageError, match="No PyTorch weights of the detector 'ssd'"):
        convert(state_dict, {**golden.CONFIG, "detector": ssd})


def test_too_few_stages_are_refused():
    detector = create_detector({**CONFIG, "detector": {**SMALL, "base_levels": 9}})
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    with pytest.raises(UsageError, match="base_levels"):
        jax.eval_shape(lambda x: detector.init(jax.random.key(0), x), images)
