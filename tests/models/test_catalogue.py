"""The list of networks, and what they cost."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from sop.errors import UsageError
from sop.models import BACKBONES, list_models
from sop.models.__main__ import main
from sop.models.catalogue import cost, multiply_adds

CONFIGS = """
from sop.config import Experiment, get_config, set_model

def small():
    return set_model(get_config(), "resnet8_cifar", attention="cgd", representation="mpncov")

EXPERIMENTS = {"small": Experiment("", small)}
"""


def test_names():
    assert list_models() == sorted(BACKBONES)
    assert list_models("resnet5*") == ["resnet50"]


def test_costs_are_those_that_others_state():
    """torchvision's documentation: 4.09 G and 25,557,032; 0.35 G and 1,235,496."""
    found = cost({"backbone": "resnet50", "num_classes": 1000})
    assert (found.parameters, found.output_stride, found.channels) == (25_557_032, 32, 2048)
    assert round(found.multiply_adds / 1e9, 2) == 4.09
    found = cost({"backbone": "squeezenet1_1", "num_classes": 1000})
    assert (found.parameters, round(found.multiply_adds / 1e9, 2)) == (1_235_496, 0.35)


def test_products_are_counted_through_loops_and_branches():
    def loop(x, w):
        return lax.scan(lambda x, _: (x @ w, None), x, None, length=5)[0]

    def branch(x, w):
        return lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x)

    def convolve(x, k):
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, k, (2, 2), "SAME", dimension_numbers=layout, feature_group_count=2
        )

    x, w = jnp.ones((2, 3)), jnp.ones((3, 3))
    assert multiply_adds(jax.make_jaxpr(loop)(x, w).jaxpr) == 5 * 2 * 3 * 3
    assert multiply_adds(jax.make_jaxpr(branch)(x, w).jaxpr) == 2 * 3 * 3
    images, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 2, 6))
    assert multiply_adds(jax.make_jaxpr(convolve)(images, kernel).jaxpr) == 16 * 6 * 9 * 2


def test_the_command_lists_backbones_and_experiments(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(CONFIGS)
    main(["mine*", f"--configs={tmp_path}"])
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["name", "network", "parameters"]
    assert row.split()[:6] == ["mine.py:small", "resnet8_cifar", "+", "cgd", "+", "mpncov"]
    main(["mine.py:small", f"--configs={tmp_path}", "--summary"])
    assert "features/layer1_0/attention" in capsys.readouterr().out
    detectors = "from configs.digit_scenes import EXPERIMENTS  # noqa\n"
    (tmp_path / "mine2.py").write_text(detectors)
    main(["mine*", f"--configs={tmp_path}"])
    assert "mine2" not in capsys.readouterr().out
    with pytest.raises(UsageError, match="fits 'nothing'"):
        main(["nothing", f"--configs={tmp_path}"])
    with pytest.raises(UsageError, match="There is no backbone 'nothing'"):
        main(["nothing", "--summary"])
