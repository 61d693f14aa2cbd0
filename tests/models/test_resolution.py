"""A config.model written out: complete, the same network, one spelling."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from sop.config.command_line import load
from sop.config.validation import as_json
from sop.models import create_model, resolve
from sop.training.state import init_variables
from tests.launch import ROOT
from tests.test_configs import FILES, NAMES

TINY = {"backbone": "resnet14_cifar", "num_classes": 10}


@pytest.mark.parametrize("file", FILES)
def test_what_is_written_out_says_the_same(file):
    for name in (name for name in NAMES if name.startswith(f"{file}.py:")):
        written = resolve(load(f"{ROOT}/configs/{name}").model)
        assert resolve(written) == written, name
        assert as_json(resolve(as_json(written))) == as_json(written), name


@pytest.mark.parametrize("attention", [None, "gsop", "cgd"])
def test_the_network_is_the_same(attention):
    config = {**TINY, "attention": attention, "pool": "gfgp", "representation": "mpncov"}
    images = jnp.zeros((2, 8, 8, 3))
    programs = []
    for spelling in (config, resolve(config)):
        model = create_model(spelling)
        shapes = jax.eval_shape(partial(init_variables, model, 0, (8, 8, 3)))
        programs.append(str(jax.make_jaxpr(partial(model.apply, train=False))(shapes, images)))
    assert programs[0] == programs[1]


def test_what_mpncov_meant_is_said():
    found = resolve({"backbone": "resnet50", "num_classes": 10, "representation": "mpncov"})
    assert found["representation"]["reduction"] == 256
    assert found["representation"]["num_iters"] == 5 and found["representation"]["dropout"] == 0
    assert found["last_stride"] == 1 and found["stem"] == "7x7"
    assert found["attention"] == {"name": "none"} and found["pool"] == {"name": None}


def test_equal_networks_resolve_to_the_same():
    short = {**TINY, "attention": {"name": "gsop", "dim": 16}, "representation": "gavp"}
    long = {**TINY, "attention": {"name": "gsop", "dim": 16, "blocks": "01 01 01"}}
    assert resolve(short) == resolve({**long, "last_stride": 1, "initialization": "he"})
    assert resolve(short) != resolve({**long, "last_stride": 2})
