"""The shapes in annotations are checked while the tests run, and only then."""

import subprocess
import sys

import jax.numpy as jnp
import jaxtyping
import pytest

from sop import layers, ops
from sop.errors import UsageError
from sop.training.step import hits


def test_a_shape_that_breaks_the_contract_is_found():
    with pytest.raises(jaxtyping.TypeCheckError):
        ops.row_convolution(jnp.ones((1, 2, 3)), jnp.ones((2, 4, 1)), jnp.ones((2, 1)))
    with pytest.raises(jaxtyping.TypeCheckError):
        layers.GlobalAverage().apply({}, jnp.ones((2, 3)), False)
    with pytest.raises(jaxtyping.TypeCheckError):
        hits(jnp.ones((2, 3)), jnp.zeros(3, int), 1)


def test_users_meet_the_refusal(unchecked):
    with pytest.raises(UsageError, match="give a feature map"):
        layers.GlobalAverage().apply({}, jnp.ones((2, 3)), False)


def test_nothing_is_checked_at_run_time():
    program = "import sys, sop.layers, sop.training.step; print('beartype' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"
