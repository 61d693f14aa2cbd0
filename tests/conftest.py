"""Eight simulated devices for every test, and annotated shapes checked; both before imports."""

import atexit
import os
import shutil
import tempfile

from tests.launch import xla_flags

os.environ.setdefault("XLA_FLAGS", xla_flags(devices=8))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Workers and the programs that tests start compile the same small networks over and over. The first
# process makes a folder for what is compiled, the others inherit its name.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="sop_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Compiling takes most of the time, and a test computes little with what it compiled.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import fcntl
import gc
import inspect

import jaxtyping
import pytest

# Traces and compiled programs are many objects and live long: by default Python would look through
# all of them thousands of times, a sixth of the tests' time and more.
gc.set_threshold(100_000, 50, 100)

check = jaxtyping.jaxtyped


def check_what_is_annotated(*, typechecker):
    """`jaxtyping.jaxtyped`, which would also wrap what has nothing to check, at every call of it.

    Functions inside of functions are made anew, and would be wrapped anew, each time.
    """

    def decorate(found):
        if inspect.isfunction(found) and not found.__annotations__:
            return found
        return check(found, typechecker=typechecker)

    return decorate


jaxtyping.jaxtyped = check_what_is_annotated
# Not sop.training.state: a state of shapes or shardings is one too.
CHECKED = ("sop.ops", "sop.layers", "sop.training.step")
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")


# Files that take half a minute or more, the longest first.
LONG = (
    "layers/test_safety",
    "trajectories",
    "test_configs",
    "test_main",
    "torch_weights",
    "layers/test_transf",
    "detection/test_training",
    "test_rcnn.py",
    "rcnn_training",
    "test_loop",
    "test_docs",
    "test_runner",
)


def pytest_collection_modifyitems(items):
    """The longest files first, so that the workers end together; each file goes to one worker."""

    def place(item):
        return next((n for n, name in enumerate(LONG) if name in item.nodeid), len(LONG))

    items.sort(key=place)


def trained(name, options, tmp_path_factory):
    """A copy of a work folder that the first worker to need it trains; tests write into copies."""
    import main

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # that of the whole session
    finished, unfinished = base / name, base / f"{name}_unfinished"
    with open(base / f"{name}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            main.main([f"--workdir={unfinished}", *options])
            unfinished.rename(finished)
    return shutil.copytree(finished, tmp_path_factory.mktemp("runs") / name)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """The work folder of a run on the digits, short but no longer blind."""
    options = ["--config.num_epochs=3", "--config.batch_size=40"]
    return trained("digits", options, tmp_path_factory)


@pytest.fixture(scope="session")
def scenes_run(tmp_path_factory):
    """The work folder of a short run of a detector."""
    from tests.detection.small import ARGUMENTS

    return trained("digit_scenes", ARGUMENTS, tmp_path_factory)


@pytest.fixture(scope="session")
def storage():
    """A stand-in for Google Cloud Storage, which holds the bucket gs://stand-in."""
    from tests.bucket import serving

    with serving("stand-in") as storage:
        yield storage


@pytest.fixture
def unchecked(monkeypatch):
    """Annotations are not checked, as for users: what does not fit is refused by the functions."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
