"""Layers' rules of names cover every variable, and their published needs are well formed."""

import re
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

import sop.layers
from sop import layers
from sop.layers.published import Published

NAMED = [
    (layers.GSoP(4, "fusion_concat"), "attention"),
    (layers.CompactGSoP(4), "attention"),
    (layers.GFGP(2), "pool"),
    (layers.GFGP(2), "pool3"),
    (layers.MPNCOV(reduction=4), "representation"),
]


@pytest.mark.parametrize(
    ("layer", "place"), NAMED, ids=lambda x: getattr(x, "name", None) or str(x)
)
def test_rules_rename_each_part_once(layer, place):
    x = jnp.zeros((2, 4, 4, 64))
    shapes = jax.eval_shape(lambda x: layer.init(jax.random.key(0), x, False), x)
    paths = traverse_util.flatten_dict(shapes["params"], sep="/")
    parts = {path.rpartition("/")[0] for path in paths}
    names = set()
    for part in parts:
        matching = [
            (pattern, name)
            for pattern, name in layer.torch_names
            if re.search(pattern, f"block/{place}/{part}/kernel")
        ]
        assert len(matching) == 1, part
        names.add(re.sub(*matching[0], f"block/{place}/{part}/kernel"))
    assert len(names) == len(parts) == len(layer.torch_names)
    assert all(re.fullmatch(r"block/[\w.]+/kernel", name) for name in names)


@pytest.mark.parametrize("name", sop.layers.__all__)
def test_published_needs_fit_the_layers_own_options(name):
    published = getattr(getattr(layers, name), "published", Published())
    hints = get_type_hints(Published)
    assert published.after in get_args(hints["after"])
    assert published.blocks in ("all", "last")
    options = get_type_hints(getattr(layers, name))
    for character, given in published.symbols.items():
        assert len(character) == 1 and character not in "01"
        for key, value in given.items():
            assert value in get_args(options[key]), (character, key)


def test_published_places():
    """As their papers' code has them."""
    assert layers.CGD.published == layers.SpatialCGD.published == layers.ToyCGD.published
    assert (layers.CGD.published.after, layers.CGD.published.blocks) == ("conv", "all")
    gsop, compact = layers.GSoP.published, layers.CompactGSoP.published
    assert (gsop.after, gsop.blocks, gsop.last_stride) == ("branch", "last", 1)
    assert (compact.after, compact.blocks, compact.last_stride) == ("branch", "last", None)
    assert gsop.representation == {"mpncov": {"num_iters": 3}}
    covariance = layers.MPNCOV.published
    assert (covariance.last_stride, covariance.attention_in_last_stage) == (1, False)
