"""ResNets, pre-activation ResNets and Wide ResNets for 32×32 images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sop.errors import UsageError
from sop.models import create_model
from sop.models.residual import PreactivationBasicBlock
from tests.models import tracing


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"backbone": "resnet20_cifar"}, 272_474),
        ({"backbone": "resnet110_cifar"}, 1_730_714),
        ({"backbone": "preresnet20_cifar"}, 272_282),
        ({"backbone": "preresnet110_cifar"}, 1_730_522),
        ({"backbone": "preresnet164_cifar"}, 1_703_258),
        ({"backbone": "preresnet56_cifar", "block": "bottleneck", "stage_size": 9}, 868_634),
        ({"backbone": "wrn16_4_cifar"}, 2_748_890),
        ({"backbone": "wrn28_10_cifar"}, 36_479_194),
        ({"backbone": "wrn40_4_cifar"}, 8_949_210),
    ],
)
def test_parameter_count(config, count):
    _, shapes, _, logits = tracing.trace(config, 32)
    assert logits == (2, 10)
    assert tracing.parameters(shapes) == count


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("backbone", "count"), [("preresnet1001_cifar", 10_327_706), ("resnet1202_cifar", 19_424_026)]
)
def test_the_deepest(backbone, count):
    _, shapes, features, _ = tracing.trace({"backbone": backbone}, 32)
    assert tracing.parameters(shapes) == count
    assert features[1:3] == (8, 8)


@pytest.mark.parametrize("backbone", ["resnet8_cifar", "preresnet8_cifar", "wrn10_1_cifar"])
@pytest.mark.parametrize(
    ("parts", "side"),
    [({}, 8), ({"representation": "mpncov"}, 16), ({"last_stride": 1}, 16), ({"pool": "max"}, 8)],
)
def test_feature_map(backbone, parts, side):
    _, _, features, _ = tracing.trace({"backbone": backbone, **parts}, 32)
    assert features == (2, side, side, 64)


def test_bottlenecks():
    """Depth 164 and 1001 by default; with pre-activation and CGD as its code counts."""
    blocks = {}
    for backbone, attention in (
        ("preresnet56_cifar", None),
        ("preresnet56_cifar", "cgd"),
        ("preresnet38_cifar", "cgd"),
        ("resnet56_cifar", "cgd"),
    ):
        _, shapes, _, _ = tracing.trace({"backbone": backbone, "attention": attention}, 32)
        convs = {path.split("/")[2:4][-1] for path in shapes if "/layer3_0/" in path}
        count = sum("/conv1/kernel" in path and "/layer3_" in path for path in shapes)
        blocks[backbone, attention] = ("conv3" in convs, count)
    assert blocks == {
        ("preresnet56_cifar", None): (False, 9),
        ("preresnet56_cifar", "cgd"): (True, 9),
        ("preresnet38_cifar", "cgd"): (False, 6),
        ("resnet56_cifar", "cgd"): (False, 9),
    }


@pytest.mark.parametrize("backbone", ["resnet8_cifar", "preresnet11_cifar", "wrn10_1_cifar"])
@pytest.mark.parametrize("name", tracing.ATTENTIONS)
def test_attentions(backbone, name):
    config = {"backbone": backbone, "attention": name}
    config |= {"block": "bottleneck", "stage_size": 1} if backbone == "preresnet11_cifar" else {}
    _, shapes, _, logits = tracing.trace(config, 16)
    assert logits == (2, 10)
    assert len(tracing.places(shapes, "attention")) == 3


@pytest.mark.parametrize("backbone", ["resnet8_cifar", "preresnet8_cifar", "wrn10_1_cifar"])
@pytest.mark.parametrize("name", tracing.POOLS)
def test_pools(backbone, name):
    _, _, features, _ = tracing.trace({"backbone": backbone, "pool": name}, 16)
    assert features == (2, 4, 4, 64)


@pytest.mark.parametrize("name", tracing.REPRESENTATIONS)
def test_representations(name):
    _, shapes, features, _ = tracing.trace({"backbone": "wrn10_1_cifar", "representation": name})
    width = tracing.REPRESENTATIONS[name](features[-1], 128)
    assert shapes["params/classifier/kernel"] == (width, 10)


@pytest.mark.parametrize("backbone", ["resnet8_cifar", "preresnet8_cifar", "wrn10_1_cifar"])
@pytest.mark.parametrize("last_stride", [1, 2])
def test_smallest_images(backbone, last_stride):
    config = {"backbone": backbone, "pool": "max", "last_stride": last_stride}
    tracing.check_smallest(config, 2 * last_stride)


def test_wide_resnets_classifier_starts_without_bias():
    initial = tracing.initial({"backbone": "wrn10_2_cifar"}, 8, ("classifier", "conv2/kernel"))
    assert (initial["classifier/bias"] == 0).all()
    kernel = initial["features/block3_layer_0/conv2/kernel"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 128)), rtol=0.03)


def test_shortcuts_of_the_tensorflow_code_project_the_activation():
    """Where ReLU(norm(x)) is zero, so is the projection, and with it the whole block."""
    block = PreactivationBasicBlock(width=3, strides=2, project_activation=True)
    x = -jnp.ones((1, 4, 4, 2))
    y, variables = block.init_with_output(jax.random.key(0), x, False)
    assert not y.any()
    assert block.clone(project_activation=False).apply(variables, x, False).any()
    config = {"backbone": "preresnet11_cifar", "block": "bottleneck", "num_classes": 2}
    model = create_model({**config, "shortcut": "activation"})
    assert model.features.block.keywords["project_activation"]
    with pytest.raises(UsageError, match="resnet8_cifar has no pre-activation"):
        create_model({"backbone": "resnet8_cifar", "num_classes": 2, "shortcut": "activation"})


def test_initialisation_of_keras():
    config = {"backbone": "preresnet8_cifar", "initialization": "glorot"}
    config["representation"] = {"name": "mpncov", "initialization": "lecun"}
    initial = tracing.initial(config, 16, ("conv2/kernel", "reduce/kernel", "classifier"))
    kernel = initial["features/layer3_0/conv2/kernel"]
    bound = np.sqrt(6 / (9 * (64 + 64)))
    assert 0.9 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.03)
    reduce = initial["representation/reduce/kernel"]
    np.testing.assert_allclose(reduce.std(), 64**-0.5, rtol=0.03)
    assert np.abs(reduce).max() <= 2 * 64**-0.5 / 0.87
    bound = np.sqrt(6 / (128 * 129 / 2 + 10))
    assert 0.9 * bound < np.abs(initial["classifier/kernel"]).max() <= bound
    assert not initial["classifier/bias"].any()
