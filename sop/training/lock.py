"""What keeps a second run out of a work folder: a lock on a disk, a lease in a bucket."""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sop.training.storage import in_bucket, split

_NAME = ".lock"
_HELD = (errno.EWOULDBLOCK, errno.EACCES)  # what locking says where another process has the lock
_SECONDS = 60.0


class HeldError(Exception):
    """Another live process has the lock; the text says which."""


class FileLock:
    """An advisory lock on `.lock` in a folder of a disk.

    It belongs to the process, not to the file: the kernel drops it however the process ends,
    SIGKILL included, so that the same command may be started again at once.

    Raises:
      HeldError: another live process has it.
      OSError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD:
                # Some network file systems have no locks; a run is still possible there.
                print(f"{folder} cannot be locked: {error.strerror}.", file=sys.stderr)
                return
            holder = os.pread(self._file, 200, 0).decode(errors="replace").strip()
            self.close()
            raise HeldError(holder or "unknown process") from error
        self.sign("")

    def sign(self, token: str) -> None:
        """Writes who has the lock, and a token by which other processes of the run know it."""
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{_this_process()} {token}".encode(), 0)

    def close(self) -> None:
        """Lets go of the folder."""
        os.close(self._file)


class Lease:
    """An object `.lock` in a folder of a bucket that its holder renews every `seconds` / 4.

    Each write names the generation of the object that it replaces, so that of two writers the
    service refuses one. Who finds an object watches it: if its holder renews it, that one lives; if
    not within `seconds`, by the watcher's clock alone, it is taken over, and at once where the
    holder was a process of this machine that is gone. Two processes that reach the service
    therefore never both begin. A holder that was cut off or held up for longer than `seconds`
    may have lost the lease: it notices, and ends, when it next renews it, until when it may write.

    Args:
      folder: in a bucket.
      seconds: that a lease outlasts its last renewal.
      lost: called, in a thread, when another process has taken it over; by default ends the
        process at once, as SIGKILL would: what was saved is the other's now.
    Raises:
      HeldError: another live process has it.
      OSError: the bucket cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        seconds: float = _SECONDS,
        lost: Callable[[], object] | None = None,
    ):
        import tensorstore

        bucket, name = split(folder)
        spec = {"driver": "gcs", "bucket": bucket, "path": f"{name}/" if name else ""}
        retries = {"max_retries": 4, "initial_delay": "1s", "max_delay": "8s"}
        self._folder, self._seconds = folder, seconds
        self._lost = lost or self._end_process
        self._token, self._key = "", secrets.token_hex(8)
        self._busy, self._ended = threading.Lock(), threading.Event()
        try:
            self._store: Any = tensorstore.KvStore.open(
                {**spec, "context": {"gcs_request_retries": retries}}
            ).result()
            found = self._store.read(_NAME).result()
            if found.state == "value" and not _is_over(found.value):
                found = self._watch(found)
            if not self._write(found.stamp.generation):
                raise HeldError(_holder(self._store.read(_NAME).result().value))
        except ValueError as error:  # what TensorStore raises for whatever the service says
            raise OSError(errno.EIO, str(error).partition(" [")[0]) from error
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def sign(self, token: str) -> None:
        """As of `FileLock`."""
        with self._busy:
            self._token = token
            self._write(self._generation)

    def close(self) -> None:
        """Lets go of the folder, once."""
        self._ended.set()
        with self._busy, contextlib.suppress(ValueError):
            self._store.write(_NAME, None, if_equal=self._generation).result()

    def _watch(self, found: Any) -> Any:
        """Reads until the object is gone, or was not renewed for long enough.

        Raises:
          HeldError: it was renewed.
        """
        holder = _holder(found.value)
        print(
            f"{self._folder} may be in use by a live run ({holder}): waiting up to "
            f"{self._seconds:g} s for a sign of it.",
            file=sys.stderr,
        )
        deadline = time.monotonic() + self._seconds
        while time.monotonic() < deadline:
            time.sleep(self._seconds / 20)
            now = self._store.read(_NAME).result()
            if now.state == "missing":
                return now
            if now.stamp.generation != found.stamp.generation:
                raise HeldError(_holder(now.value))
        return found

    def _write(self, replaced: bytes) -> bool:
        """Writes the object if it is of generation `replaced`; whether it is this one's then."""
        said = {
            "holder": _this_process(),
            "process": os.getpid(),
            "machine": _machine(),
            "renewed": datetime.now(UTC).isoformat(timespec="seconds"),
            "key": self._key,
            "token": self._token,
        }
        written = self._store.write(_NAME, json.dumps(said), if_equal=replaced).result()
        generation = written.generation
        if not generation:  # refused; but a write whose answer was lost is refused its repetition
            found = self._store.read(_NAME).result()
            if self._key.encode() not in found.value:
                return False
            generation = found.stamp.generation
        self._generation: bytes = generation
        return True

    def _renew(self) -> None:
        while not self._ended.wait(self._seconds / 4):
            with self._busy, contextlib.suppress(ValueError):  # cut off: nothing can be written
                if not self._ended.is_set() and not self._write(self._generation):
                    self._lost()
                    return

    def _end_process(self) -> None:
        print(
            f"Another run has taken over {self._folder}, where this one had given no sign for "
            f"{self._seconds:g} s: it ends.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


def lock(folder: Path) -> FileLock | Lease:
    """Locks a work folder, as it can be locked where it is."""
    return Lease(folder) if in_bucket(folder) else FileLock(folder)


def is_in_use(folder: str | os.PathLike) -> bool:
    """Whether a live process holds a folder of a disk; False where there are no locks."""
    try:
        file = os.open(Path(folder) / _NAME, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _HELD
    finally:
        os.close(file)
    return False


def token_in(folder: Path) -> str:
    """What the lock of a folder says, the token included; '': nothing can be read."""
    try:
        return (folder / _NAME).read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _holder(text: bytes) -> str:
    try:
        said = json.loads(text)
        return f"{said['holder']}, seen {said['renewed']}"
    except (ValueError, KeyError, TypeError):
        return "unknown process"


def _is_over(text: bytes) -> bool:
    """Whether the holder that an object names was a process of this machine and is gone."""
    try:
        said = json.loads(text)
        if said["machine"] is None or said["machine"] != _machine():
            return False
        os.kill(said["process"], 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return False


def _machine() -> str | None:
    """What two processes have in common that know each other by their numbers; None: unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
