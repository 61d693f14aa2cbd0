"""Where a work folder lies: on a disk, or in a bucket of Google Cloud Storage (`gs://BUCKET/RUN`).

This module and `sop.training.lock` know the difference; the others are given paths by `locate`,
which read and write alike in both. An object of a bucket is written whole or not at all, cannot
grow, and is where a folder would be a part of its name.
"""

import contextlib
import functools
import importlib.util
import logging
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from sop.errors import UsageError, first_line

_SCHEME = "gs://"
_COMMITTED = "commit_success.txt"  # Orbax writes it last
_EVERY = 30.0  # seconds between two writings of an object that grows


def locate(path: str | os.PathLike) -> Path:
    """The path of a file or folder, to be used as one of `pathlib`.

    Returns:
      A `pathlib.Path`, or `etils.epath.Path` where it begins with gs://.
    Raises:
      UsageError: the bucket cannot be used, or the path begins with the name of another service.
    """
    text = os.fspath(path)
    if "://" not in text:
        return Path(text)
    if not text.startswith(_SCHEME) or not urlsplit(text).netloc:
        raise UsageError(
            f"{text} names no folder: give one of this machine's file system, or "
            "gs://BUCKET/FOLDER in Google Cloud Storage."
        )
    _open_bucket(urlsplit(text).netloc)
    from etils import epath

    return cast(Path, epath.Path(text))


def absolute(path: str | os.PathLike) -> Path:
    """`locate`, from the root on."""
    found = locate(path)
    return found if in_bucket(found) else found.absolute()


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether a path leads into a bucket."""
    return os.fspath(path).startswith(_SCHEME)


def split(path: Path) -> tuple[str, str]:
    """A path in a bucket → (the bucket's name, the name in it)."""
    parts = urlsplit(os.fspath(path))
    return parts.netloc, parts.path.strip("/")


def entries(folder: Path) -> list[Path]:
    """What is in a folder, by name; nothing, where there is none."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder and in those in it."""
    for path in entries(folder):
        if path.is_dir():
            yield from files_below(path)
        else:
            yield path


def copy_files(source: Path, target: Path) -> None:
    """Copies what is in a folder of the disk into another folder, which is made if need be."""
    for path in files_below(source):
        copy = target / path.relative_to(source).as_posix()
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())


def is_committed(checkpoint: Path) -> bool:
    """Whether a checkpoint is whole: Orbax names it last on a disk, and marks it in a bucket."""
    if in_bucket(checkpoint):
        return (checkpoint / _COMMITTED).exists()
    return checkpoint.is_dir()


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file so that whoever reads it, at any moment, sees all of the old or all of the new.

    On a disk the content reaches it before the name does: a crash leaves one of the two as well. A
    folder that stands in the file's place is moved aside to `damaged-NAME`.
    """
    path = locate(path)
    data = content.encode() if isinstance(content, str) else content
    if in_bucket(path):
        path.write_bytes(data)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if path.is_dir():
        set_aside(path)
    os.replace(temporary, path)


def set_aside(path: Path) -> Path:
    """Renames what is damaged to a free name, 'damaged-NAME' or 'damaged-NAME.2', …"""
    target, count = path.with_name(f"damaged-{path.name}"), 1
    while target.exists():
        count += 1
        target = path.with_name(f"damaged-{path.name}.{count}")
    return path.rename(target)


class Lines:
    """A text file that is begun anew and then grows by lines.

    On a disk each is added at once. In a bucket all of it is written again, by `flush` and every
    half minute: a kill loses the lines since then.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lines: list[str] = []
        self._written, self._pending = time.monotonic(), False

    def begin(self, lines: Iterable[str]) -> None:
        """Writes these in the place of what the file holds."""
        self._lines, self._pending = list(lines), True
        self.flush()

    def append(self, line: str) -> bool:
        """Adds a line; whether it has been written."""
        if not in_bucket(self._path):
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(line)
            return True
        self._lines.append(line)
        self._pending = True
        return time.monotonic() - self._written >= _EVERY and self.flush()

    def flush(self) -> bool:
        """Writes what has not been written; whether there was anything."""
        pending, self._pending = self._pending, False
        if pending:
            write_atomically(self._path, "".join(self._lines))
            self._written = time.monotonic()
        return pending


@functools.cache
def _open_bucket(name: str) -> None:
    """Readies the libraries, and asks for the bucket, which Orbax asks for as well.

    Raises:
      UsageError: it cannot be reached, or there is none.
    """
    if importlib.util.find_spec("gcsfs") is None:
        raise UsageError(
            f"gs://{name} needs the package gcsfs: pip install -c constraints.txt -e '.[cloud]'."
        )
    os.environ["EPATH_USE_TF"] = "false"  # etils would import TensorFlow where it is installed
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints what it raises
    import fsspec.config
    from google.cloud import storage

    # TensorStore writes what these listings would miss, and what Orbax then would not remove.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    try:
        with contextlib.closing(storage.Client()) as client:
            client.get_bucket(name)
    except Exception as error:  # of the library, of its transport, of finding credentials
        raise UsageError(
            f"The bucket gs://{name} cannot be reached ({first_line(error).rstrip('.')}): check "
            "its name, the network, the credentials ('gcloud auth application-default login') and "
            "that they may get the bucket."
        ) from error
