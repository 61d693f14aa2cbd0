"""Eight simulated devices for every test, and annotated shapes checked; both before imports."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jaxtyping
import pytest

# Not sop.training.state: a state of shapes or shardings is one too.
CHECKED = ("sop.ops", "sop.layers", "sop.training.step")
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")


@pytest.fixture
def unchecked(monkeypatch):
    """Annotations are not checked, as for users: what does not fit is refused by the functions."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
