"""What cannot be held in memory is refused with what could be, before anything is allocated."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from sop.config import get_config
from sop.errors import UsageError
from sop.models import create_model
from sop.training import memory
from sop.training.state import init_variables
from sop.training.step import make_mesh

X = jax.ShapeDtypeStruct((6, 8), jnp.float32)


@pytest.mark.parametrize(
    ("function", "size"),
    [
        (lambda x: x * 2, 0),  # may be fused with what uses it
        (lambda x: x @ x.T, 6 * 6 * 4),
        (lambda x: jnp.sum(jax.jit(lambda x: x.T @ x)(x)), 8 * 8 * 4),
        (lambda x: x.T.astype(jnp.bfloat16) @ x.astype(jnp.bfloat16), 8 * 8 * 2),
        (
            lambda x: jax.lax.cond(x[0, 0] > 0, lambda: (x @ x.T).sum(), lambda: (x.T @ x).sum()),
            144,
        ),
        (lambda x: jax.lax.map(lambda row: jnp.outer(row, row) @ x.T, x), 8 * 6 * 4),
    ],
)
def test_largest_product(function, size):
    assert memory.largest_product(jax.make_jaxpr(function)(X).jaxpr) == size


def rows(*shape, ahead=1):
    return SimpleNamespace(row_shape=shape, batches_ahead=ahead)


@pytest.fixture
def refused(monkeypatch):
    """Checks a small network in so much memory; returns the refusal, or None."""
    model = create_model({"backbone": "resnet8_cifar", "num_classes": 10})
    variables = jax.eval_shape(lambda: init_variables(model, 0, (8, 8, 3)))

    def check(key, size, data, device=10**9, host=10**9, cached=0, devices=1, parts=1):
        monkeypatch.setattr(memory, "device_memory", lambda devices, host: device)
        monkeypatch.setattr(memory, "host_memory", lambda: host)
        config = get_config()
        config[key], config.accumulation = size, parts
        mesh = make_mesh(jax.devices()[:devices])
        try:
            memory.check_memory(config, {key: data}, model, variables, variables, mesh, cached)
        except UsageError as error:
            return str(error)
        return None

    return check


def test_batches_are_refused_with_the_largest_that_might_do(refused):
    assert refused("batch_size", 1024, rows(8, 8, 3)) is None
    # The first convolution's result is the largest: 16 channels of 8×8, float32.
    said = refused("batch_size", 10**6, rows(8, 8, 3))
    assert said.startswith(
        "config.batch_size = 1000000 needs at least 4.29 GB, but a device has 1 GB"
    )
    most = int(said.split("set at most ")[1].rstrip("."))
    assert most == (10**9 - 314_856) // (8 * 8 * 3 + 8 * 8 * 16 * 4)
    assert refused("batch_size", most, rows(8, 8, 3)) is None
    assert refused("batch_size", most + 1, rows(8, 8, 3)) is not None
    assert "a device has 1 GB: raise config.accumulation, or set at most" in said
    assert refused("batch_size", 4 * most, rows(8, 8, 3), parts=5) is None
    # Two devices share the batch; the ten crops of an image do not.
    assert refused("batch_size", 2 * most, rows(8, 8, 3), devices=2) is None
    said = refused("eval_batch_size", most, rows(10, 8, 8, 3))
    assert said.startswith(f"config.eval_batch_size = {most} needs at least ")


def test_batches_read_ahead_stand_in_the_hosts_memory(refused):
    data = rows(8, 8, 3, ahead=5)
    assert refused("batch_size", 1000, data, host=1000 * 5 * 192) is None
    said = refused("batch_size", 1000, data, host=1000 * 5 * 192 - 1)
    assert said == (
        "config.batch_size = 1000 needs at least 960 kB, but this host has 960 kB: set at most 999."
    )
    said = refused("batch_size", 1000, data, host=1000 * 5 * 192, cached=192 * 5)
    assert said.endswith("set at most 999.")


def test_what_no_batch_size_helps(refused):
    said = refused("eval_batch_size", 1, rows(4000, 4000, 3))
    assert said.startswith("One image of 4000×4000 pixels needs at least 1.07 GB, but a device has")
    assert said.endswith("make it smaller in config.input.eval_transforms.")
    said = refused("batch_size", 1, rows(8, 8, 3), device=10**5)
    assert said.startswith(
        "The parameters of config.model, with what belongs to them, need 315 kB,"
    )
    said = refused("batch_size", 1, rows(8, 8, 3), cached=3 * 10**9)
    assert said == (
        "config.input.cache needs 3 GB, but this host has 1 GB: set --config.input.cache=False."
    )


def test_limits(monkeypatch, tmp_path):
    whole = memory.host_memory()
    assert whole > 2**28
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "bytes").write_text("1000000\n")
    monkeypatch.setattr(memory, "_LIMITS", (f"{tmp_path}/max", f"{tmp_path}/none"))
    assert memory.host_memory() >= whole
    monkeypatch.setattr(memory, "_LIMITS", (f"{tmp_path}/max", f"{tmp_path}/bytes"))
    assert memory.host_memory() == 10**6
    gpus = [
        SimpleNamespace(memory_stats=lambda size=size: {"bytes_limit": size}) for size in (9, 7)
    ]
    assert memory.device_memory(gpus, 100) == 7
    assert memory.device_memory(jax.devices()[:2], 100) == 50


def test_sizes_are_readable():
    assert [memory.readable(10**power) for power in (0, 3, 7, 15, 18)] == [
        "1 bytes",
        "1 kB",
        "10 MB",
        "1 PB",
        "1e+03 PB",
    ]
    assert memory.readable(math.floor(1.2345e9)) == "1.23 GB"
