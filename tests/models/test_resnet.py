"""ResNet, ResNeXt and what GFGP, GSoP, CGD and fast MPN-COV make of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sop.models import create_model
from tests.models import tracing


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"backbone": "resnet18"}, 11_689_512),
        ({"backbone": "resnet34"}, 21_797_672),
        ({"backbone": "resnet50"}, 25_557_032),
        ({"backbone": "resnet101"}, 44_549_160),
        ({"backbone": "resnet152"}, 60_192_808),
        ({"backbone": "resnext50_32x4d"}, 25_028_904),
        ({"backbone": "resnext101_32x8d"}, 88_791_336),
    ],
)
def test_parameter_count_is_torchvisions(config, count):
    _, shapes, _, logits = tracing.trace(config, 32, num_classes=1000)
    assert logits == (2, 1000)
    assert tracing.parameters(shapes) == count


@pytest.mark.parametrize(
    ("parts", "side"),
    [
        ({}, 7),
        ({"last_stride": 1}, 14),
        ({"representation": "mpncov"}, 14),
        ({"representation": "mpncov", "last_stride": 2}, 7),
        ({"representation": "bcnn"}, 7),
        ({"attention": "gsop"}, 14),
        ({"attention": "cgd"}, 7),
        ({"pool": "gfgp"}, 7),
        ({"pool": "max", "last_stride": 1}, 14),
        ({"pool": "average", "stem": "p"}, 7),
        ({"stem": "p"}, 7),
    ],
)
def test_feature_map_at_224_pixels(parts, side):
    _, _, features, _ = tracing.trace({"backbone": "resnet18", **parts}, 224)
    assert features == (2, side, side, 512)


def test_gfgp_stands_twice_in_the_stem_and_at_the_end_of_three_stages():
    config = {"backbone": "resnet18", "pool": "gfgp"}
    _, shapes, _, _ = tracing.trace(config, 32)
    pools = {path.split("/")[-3] for path in shapes if path.endswith("squeeze/kernel")}
    assert pools == {"pool1", "pool", "pooling"}
    assert tracing.places(shapes, "pooling") == {"layer2_0", "layer3_0", "layer4_0"}
    _, shapes, _, _ = tracing.trace(config | {"stem": "p", "last_stride": 1}, 32)
    assert not tracing.places(shapes, "pool1")
    assert tracing.places(shapes, "pool") == {""}
    assert tracing.places(shapes, "pooling") == {"layer2_0", "layer3_0"}


@pytest.mark.parametrize(
    ("attention", "blocks"),
    [
        ("gsop", {"layer1_1", "layer2_1", "layer3_1", "layer4_1"}),
        ({"name": "gsop", "blocks": "11 00 M0 02"}, {"layer1_0", "layer1_1", "layer3_0"}),
        ("cgd", {f"layer{stage}_{block}" for stage in (1, 2, 3, 4) for block in (0, 1)}),
        ({"name": "cgd", "blocks": "last"}, {"layer1_1", "layer2_1", "layer3_1", "layer4_1"}),
    ],
)
def test_placement_of_attention(attention, blocks):
    _, shapes, _, _ = tracing.trace({"backbone": "resnet18", "attention": attention}, 32)
    if "blocks" in attention and "2" in attention["blocks"]:
        assert any("layer4_1/attention/position" in path for path in shapes)
        assert any("layer3_0/attention/position" in path for path in shapes)
        assert any("layer3_0/attention/channel" in path for path in shapes)
        assert not any("layer4_1/attention/channel" in path for path in shapes)
        blocks = blocks | {"layer4_1"}
    assert tracing.places(shapes, "attention") == blocks


def test_cgd_stands_behind_the_first_convolution_and_gsop_behind_the_last_norm():
    _, shapes, _, _ = tracing.trace({"backbone": "resnet50", "attention": "cgd"}, 32)
    assert shapes["params/features/layer2_0/attention/w0"] == (128,)
    _, shapes, _, _ = tracing.trace({"backbone": "resnet50", "attention": "gsop"}, 32)
    assert shapes["params/features/layer2_3/attention/channel/reduce/kernel"] == (1, 1, 512, 128)


@pytest.mark.parametrize("name", tracing.ATTENTIONS)
def test_attentions(name):
    _, shapes, _, logits = tracing.trace({"backbone": "resnet18", "attention": name}, 32)
    assert logits == (2, 10)
    assert tracing.places(shapes, "attention")


@pytest.mark.parametrize("name", tracing.POOLS)
@pytest.mark.parametrize("stem", ["7x7", "p"])
def test_pools(name, stem):
    config = {"backbone": "resnet18", "pool": name, "stem": stem, "representation": "mpncov"}
    _, _, features, logits = tracing.trace(config, 64)
    assert features == (2, 4, 4, 512)
    assert logits == (2, 10)


@pytest.mark.parametrize("name", tracing.REPRESENTATIONS)
def test_representations(name):
    tracing.check_representation({"backbone": "resnet18"}, name)


@pytest.mark.parametrize(
    ("stem", "last_stride", "size"), [("7x7", 1, 14), ("7x7", 2, 30), ("p", 1, 16), ("p", 2, 32)]
)
def test_smallest_images(stem, last_stride, size):
    config = {"backbone": "resnet18", "pool": "max", "stem": stem, "last_stride": last_stride}
    tracing.check_smallest(config, size)


def test_initialisation():
    """Convolutions N(0, 2/fan_out), norms 1 and 0, the classifier U(±1/√fan_in)."""
    chosen = ("layer2_0/conv2/kernel", "layer2_0/bn2", "classifier")
    initial = tracing.initial({"backbone": "resnext50_32x4d"}, 32, chosen)
    kernel = initial["features/layer2_0/conv2/kernel"]
    assert kernel.shape == (3, 3, 8, 256)
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 256)), rtol=0.03)
    assert (initial["features/layer2_0/bn2/scale"] == 1).all()
    assert (initial["features/layer2_0/bn2/bias"] == 0).all()
    bound = 2048**-0.5
    for leaf in ("kernel", "bias"):
        values = initial[f"classifier/{leaf}"]
        assert abs(values).max() <= bound
        assert abs(values).max() > 0.8 * bound
    np.testing.assert_allclose(initial["classifier/kernel"].std(), bound / np.sqrt(3), rtol=0.03)


def test_batch_norm_is_pytorchs():
    """Statistics move by a tenth; the variance is the unbiased one of the batch."""
    model = create_model({"backbone": "resnet8_cifar", "num_classes": 2})
    images = 2.0 + jax.random.normal(jax.random.key(0), (2, 8, 8, 3))

    @jax.jit
    def run():
        variables = model.init(jax.random.key(1), images, train=False)
        _, state = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return variables, state

    variables, state = run()
    first = jax.lax.conv_general_dilated(
        images,
        variables["params"]["features"]["conv1"]["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    found = state["batch_stats"]["features"]["bn1"]
    np.testing.assert_allclose(found["mean"], 0.1 * first.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(
        found["var"], 0.9 + 0.1 * jnp.var(first, (0, 1, 2), ddof=1), rtol=1e-4
    )


def test_last_norms_of_branches_may_start_at_zero():
    config = {"backbone": "resnet18_cgd", "zero_init_residual": True}
    initial = tracing.initial(config, 32, ("bn1/scale", "bn2/scale", "downsample_1/scale"))
    for path, scale in initial.items():
        assert (scale == (0 if "/bn2/" in path else 1)).all()
    assert sum("/bn2/" in path for path in initial) == 1 + 2 + 2 + 1
