"""The work folder of a run: made, locked against a second run, and tied to one config."""

import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from sop.config.validation import as_json, differences, may_change
from sop.errors import UsageError
from sop.training.checkpoints import steps_in


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
    """A work folder in use by this process: a context, which it must be for as long as it runs.

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the folder."""
        os.close(self._lock)

    def settle_config(self, config: Mapping[str, Any]) -> None:
        """Ties the folder to `config`, in `config.json`; call it before the first step.

        A folder with checkpoints holds a run: `config` may then differ from `config.json` only in
        keys that the schema lets change on resuming, and the file is brought up to date.

        Raises:
          UsageError: naming each key that differs, with both values.
        """
        present = as_json(config)
        if steps_in(self.path) and (self.path / "config.json").exists():
            saved = read_config(self.path)
            changed = differences(saved, present)
            refused = [key for key in changed if not _may_change(key, saved, present)]
            _refuse(self.path, {key: changed[key] for key in refused})
            if saved == present:
                return
        write_json(self.path / "config.json", present)


def _may_change(key: str, saved: Mapping[str, Any], present: Mapping[str, Any]) -> bool:
    return may_change(key, saved) and may_change(key, present)


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """The config of the run in work folder `path`.

    Raises:
      UsageError: the folder has no readable `config.json`.
    """
    file = Path(path) / "config.json"
    try:
        return json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"Work folder {path} holds no run (no config.json): check --workdir, or train first."
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{file} cannot be read ({error}): restore it or start in another --workdir."
        ) from error


def refuse_another_model(path: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Refuses to read the checkpoints of work folder `path` into another model than theirs.

    Converted weights come without a `config.json`: their shapes alone can tell.

    Raises:
      UsageError: `config.model` differs from the folder's, or the folder holds no run.
    """
    if not steps_in(path) or (Path(path) / "config.json").exists():
        _refuse(path, differences(read_config(path), as_json(config), groups=("model.",)))


def _refuse(path: str | os.PathLike, changed: Mapping[str, tuple[Any, Any]]) -> None:
    if changed:
        pairs = "; ".join(
            f"{key} was {before!r}, is {now!r}" for key, (before, now) in changed.items()
        )
        raise UsageError(
            f"Work folder {path} holds a run of another config ({pairs}): "
            "restore these values, or choose another --workdir."
        )
