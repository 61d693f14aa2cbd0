"""How programs are compiled, and kept on disk: the next run of the same network need not do it."""

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from sop.errors import UsageError

# Seconds: reading a program that took less to compile gains nothing.
_WORTH_KEEPING = 0.2


def keep_compiled(folder: str | None) -> None:
    """Lets JAX read and write compiled programs in a folder of this machine's kind in `folder`.

    A program of another version, network, batch or device is another file. The environment variable
    JAX_COMPILATION_CACHE_DIR comes first; None: no change. A folder that cannot be written costs a
    warning.
    """
    if folder is None or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    path = Path(folder).expanduser() / _machine()
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)


def check_compiler_options(options: Mapping[str, Any]) -> None:
    """Compiles next to nothing with them, on the devices of this run.

    Raises:
      UsageError: the compiler does not know one, or it takes another value.
    """
    try:
        jax.jit(lambda: 0, compiler_options=dict(options) or None).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        raise UsageError(
            f"config.compiler_options cannot be used, XLA's compiler says: {error}"
        ) from error


def _machine() -> str:
    """Names what programs for the CPU are compiled for: a home folder may be shared by several."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        kind = "".join(sorted({each for each in lines if each.startswith(("flags", "Features"))}))
    except OSError:  # not Linux
        kind = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"
