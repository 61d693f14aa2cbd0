"""Files that outlast a crash and tell when they were changed: atomic writes and checksums.

A checksum is CRC-32: it notices every flipped byte and lets one in 2³² larger damages through. It
guards against disks and cables, not against people.
"""

import errno
import io
import json
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sop.errors import UsageError
from sop.training.storage import entries, files_below, write_atomically

CHECKSUMS = "checksums.json"
_SEAL = "crc32"
# What the disk answers, not the program.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class DamagedError(OSError):
    """A file that is not as it was written."""


def write_json(path: str | os.PathLike, value: Any) -> None:
    """`write_atomically` of `value` as indented JSON."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def write_figure(path: str | os.PathLike, figure: Any, dpi: int = 100) -> None:
    """`write_atomically` of a Matplotlib figure as PNG."""
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of signs that the font does not have
        figure.savefig(picture, format="png", dpi=dpi)
    write_atomically(path, picture.getvalue())


@contextmanager
def refuse_full_disk(folder: str | os.PathLike) -> Iterator[None]:
    """A context in which a disk that is full, or cannot be written, ends in a UsageError."""
    try:
        yield
    except Exception as error:
        if (number := _disk_error(error)) is None:
            raise
        raise UsageError(
            f"A file in {folder} could not be written ({os.strerror(number)}): make room for it; "
            "the same command then goes on from the last checkpoint."
        ) from error


def _disk_error(error: BaseException | None) -> int | None:
    """The number of the system's error behind an exception; TensorStore tells it in words alone."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return error.errno
        for number in _DISK:
            if f"os_error_code='{number}'" in str(error):
                return number
        error = error.__cause__ or error.__context__
    return None


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with a checksum of the rest under the key 'crc32'."""
    return {**value, _SEAL: zlib.crc32(json.dumps(value).encode())}


def unseal(text: str | bytes) -> tuple[dict[str, Any], bool]:
    """The JSON object that `seal` was given, and whether the text has a checksum at all.

    Raises:
      DamagedError: it is no JSON object, or its checksum is another.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DamagedError(f"it is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise DamagedError("it is no JSON object")
    checksum = value.pop(_SEAL, None)
    if checksum is not None and checksum != zlib.crc32(json.dumps(value).encode()):
        raise DamagedError("its checksum is another")
    return value, checksum is not None


def write_checksums(folder: Path) -> None:
    """Writes `folder/checksums.json`: the size and CRC-32 of every file in its subfolders."""
    parts = (path for path in entries(folder) if path.is_dir())
    files = {
        path.relative_to(folder).as_posix(): _checksum(path)
        for part in parts
        for path in files_below(part)
    }
    write_atomically(folder / CHECKSUMS, json.dumps(seal({"files": files})))


def verify_checksums(folder: Path, parts: Sequence[str]) -> bool:
    """Compares the files below `folder/PART` for each of `parts` with what was written.

    Returns:
      False where the folder has no checksums: an earlier version wrote it.
    Raises:
      DamagedError: a file is missing or changed, or the checksums are.
    """
    try:
        text = (folder / CHECKSUMS).read_bytes()
    except FileNotFoundError:
        return False
    files = unseal(text)[0]["files"]
    for name, expected in files.items():
        if name.split("/")[0] in parts:
            try:
                found = _checksum(folder / name)
            except OSError as error:
                raise DamagedError(f"{name}: {error.strerror}") from error
            if found != expected:
                raise DamagedError(f"{name} is not as it was written")
    return True


def _checksum(path: Path) -> list[int]:
    size = checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return [size, checksum]
