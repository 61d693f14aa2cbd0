"""The work folder of a run: made, locked against a second run, and tied to one config."""

import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sop.errors import UsageError
from sop.training.checkpoints import FOLDER
from sop.training.config import flatten

# What may change between a run and its continuation: no part of the model, of the training and
# evaluation examples, or of the course of training. A trailing dot stands for everything below.
FREE_KEYS = (
    "checkpoint.",
    "eval_batch_size",
    "eval_every_epochs",
    "input.bad_images",
    "input.cache",
    "input.data_dir",
    "input.num_workers",
    "log_every_steps",
    "profile",
)


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file so that whoever reads it, at any moment, sees all of the old or all of the new.

    The content reaches the disk before the name does: a crash leaves one of the two as well.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    data = content.encode() if isinstance(content, str) else content
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """`write_atomically` of `value` as indented JSON."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


class WorkDir:
    """A work folder in use by this process, until `close` or the end of the process.

    An advisory lock on `.lock` keeps a second run out. It belongs to the process, not to the file:
    the kernel drops it however the process ends, SIGKILL included, so that the same command may be
    started again at once.

    Attributes:
      path: the folder, made if need be.
    Raises:
      UsageError: the folder cannot be made or written, or another live process uses it.
    """

    def __init__(self, path: str | os.PathLike):
        if "://" in str(path):
            raise UsageError(
                f"--workdir={path} is not a folder of the file system: give a local or mounted one."
            )
        self.path = Path(path)
        self._lock = -1
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UsageError(
                f"Work folder {path} cannot be written ({error.strerror}): "
                "choose another --workdir or change its permissions."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                # Some network file systems have no locks; a run is still possible there.
                print(f"{path} cannot be locked: {error.strerror}.", file=sys.stderr)
                return
            holder = os.pread(self._lock, 200, 0).decode(errors="replace").strip()
            self.close()
            raise UsageError(
                f"Work folder {path} is in use by a live run ({holder or 'unknown process'}): "
                "wait for it, stop it, or choose another --workdir."
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def close(self) -> None:
        """Lets go of the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def settle_config(self, config: Mapping[str, Any]) -> None:
        """Ties the folder to `config`, in `config.json`; call it before the first step.

        A folder with checkpoints holds a run: `config` may then differ from `config.json` in
        `FREE_KEYS` only (in `num_epochs` too where nothing else depends on it), and the
        file is brought up to date.

        Args:
          config: a ConfigDict, or any nested mapping that JSON can hold.
        Raises:
          UsageError: naming each key that differs, with both values.
        """
        present = as_json(config)
        if _has_checkpoints(self.path) and (self.path / "config.json").exists():
            saved = read_config(self.path)
            free = FREE_KEYS
            lengthens = all(c["schedule"]["name"] in ("constant", "step") for c in (saved, present))
            if lengthens and not present["stages"]:
                free = (*FREE_KEYS, "num_epochs")
            _refuse_differences(self.path, differences(saved, present, free))
            if saved == present:
                return
        write_json(self.path / "config.json", present)


def as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `config` is after a round trip through `config.json` (tuples become lists)."""
    plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return json.loads(json.dumps(plain))


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """The config of the run in work folder `path`.

    Raises:
      UsageError: the folder has no readable `config.json`.
    """
    file = Path(path) / "config.json"
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise UsageError(
            f"Work folder {path} holds no run (no config.json): check --workdir, or train first."
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{file} cannot be read ({error}): restore it or start in another --workdir."
        ) from error


def check_same_model(path: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Refuses to read the checkpoints of work folder `path` into another model than theirs.

    Converted weights come without a `config.json`: their shapes alone can tell.

    Raises:
      UsageError: `config.model` differs from the folder's, or the folder holds no run.
    """
    if _has_checkpoints(path) and not (Path(path) / "config.json").exists():
        return
    saved, present = read_config(path).get("model", {}), as_json(config)["model"]
    _refuse_differences(path, differences({"model": saved}, {"model": present}))


def differences(
    saved: Mapping[str, Any], present: Mapping[str, Any], free: tuple[str, ...] = ()
) -> dict[str, tuple[str, str]]:
    """Dotted keys, not among `free`, whose values differ → (saved, present) as they are written."""
    before, now = flatten(saved), flatten(present)
    changed = {}
    for key in sorted(before.keys() | now.keys()):
        values = tuple(json.dumps(d[key]) if key in d else "not set" for d in (before, now))
        is_free = any(key == f or (f.endswith(".") and key.startswith(f)) for f in free)
        if before.get(key) != now.get(key) and not is_free:
            changed[key] = values
    return changed


def _has_checkpoints(path: str | os.PathLike) -> bool:
    return any(step.name.isdigit() for step in (Path(path) / FOLDER).glob("*"))


def _refuse_differences(path: str | os.PathLike, changed: dict[str, tuple[str, str]]) -> None:
    if changed:
        pairs = "; ".join(f"{k} was {before}, is {now}" for k, (before, now) in changed.items())
        raise UsageError(
            f"Work folder {path} holds a run of another config ({pairs}): "
            "restore these values, or choose another --workdir."
        )
