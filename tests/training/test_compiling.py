"""Compiled programs are kept for later runs."""

import subprocess
import sys

import jax
import pytest

from sop.errors import UsageError
from sop.training.compiling import check_compiler_options
from sop.training.step import data_parallel, make_mesh
from tests.launch import ROOT, environment

PROGRAM = """
import sys
import jax
from sop.training.compiling import keep_compiled
keep_compiled(sys.argv[1] if sys.argv[1] else None)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((8, 8))).block_until_ready()
print(sum("cache_hits" in event for event in hits) > 0)
"""


def run(folder, **variables):
    env = {k: v for k, v in environment().items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", PROGRAM, folder]
    done = subprocess.run(command, env=env | variables, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def test_a_second_run_reads_what_the_first_compiled(tmp_path):
    assert run("~/kept", HOME=str(tmp_path))[0] == "False"
    assert list((tmp_path / "kept").iterdir())
    assert run("~/kept", HOME=str(tmp_path))[0] == "True"


@pytest.mark.parametrize("folder", ["", "file"])
def test_without_a_folder_nothing_is_kept(tmp_path, folder):
    (tmp_path / "file").touch()
    assert run(folder and str(tmp_path / folder))[0] == "False"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_options_that_the_compiler_does_not_take_are_refused():
    check_compiler_options({})
    check_compiler_options({"xla_gpu_enable_latency_hiding_scheduler": True})
    for name, value in [("xla_nonsense", True), ("xla_gpu_autotune_level", "much")]:
        with pytest.raises(UsageError, match=f"config.compiler_options .*{name}"):
            check_compiler_options({name: value})


def test_the_step_is_compiled_with_them():
    mesh = make_mesh(jax.devices()[:1])
    step = data_parallel(lambda state, batch: state, mesh, options={"xla_nonsense": True})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_nonsense"):
        step(jax.numpy.zeros(1), jax.numpy.zeros(1))
