"""What made a run: the commands, the code, the packages and the machine, in `provenance.json`.

The file holds a list with an entry for each process that trained in the work folder, the newest
last. It is a record for people: nothing of it is compared when a run goes on.
"""

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from sop.training.durable import write_json
from sop.training.storage import locate

FILE = "provenance.json"


def read_provenance(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The entries of a work folder, oldest first; none where there is no file, or a damaged one."""
    try:
        entries = json.loads((locate(workdir) / FILE).read_bytes())
    except (OSError, ValueError):
        return []
    return entries if isinstance(entries, list) else []


@contextmanager
def recorded(workdir: str | os.PathLike, packages: Iterable[str]) -> Iterator[None]:
    """Around the training of one process: an entry at its start, and how long it took at its end.

    Keys: 'command', 'directory', 'git' (see `git_state`), 'packages', 'python', 'host',
    'platform', 'devices', 'start' (UTC) and 'seconds'; these are null where the process was killed.
    """
    began = time.monotonic()
    entry: dict[str, Any] = {
        "command": shlex.join(sys.orig_argv),
        "directory": os.getcwd(),
        "git": git_state(Path(__file__).parent),
        "packages": {name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "devices": _devices(),
        "start": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": None,
    }
    entries = [*read_provenance(workdir), entry]
    write_json(locate(workdir) / FILE, entries)
    try:
        yield
    finally:
        entry["seconds"] = round(time.monotonic() - began, 1)
        if locate(workdir).is_dir():
            write_json(locate(workdir) / FILE, entries)


def git_state(folder: Path) -> dict[str, Any] | None:
    """{'commit', 'dirty': whether tracked or new files differ from it}; None outside a repository.

    Files in `results/`, where a study writes down what it found, do not count.

    A folder that lies in a repository without being part of it, as an environment does, counts as
    outside.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit or not _git(folder, "ls-files", "--", "."):
        return None
    code = (":(top)", ":(top,exclude)results")
    return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--", *code))}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _devices() -> dict[str, Any]:
    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kinds": sorted({device.device_kind for device in devices}),
        "count": len(devices),
        "processes": jax.process_count(),
    }
