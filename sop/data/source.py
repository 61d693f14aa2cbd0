"""What all examples come through, wherever they lie."""

import hashlib
from collections.abc import Iterable
from typing import Any, Protocol


class Source(Protocol):
    """The examples of one split, in a fixed order."""

    class_names: list[str]
    image_size: tuple[int, int] | None  # height, width, where known to be the same for all
    identity: dict[str, Any]  # what tells it from other data: see `identity_of`

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        """(encoded image, label)

        Raises:
          BadImageError: the file of the image cannot be read.
        """

    def describe(self, index: int) -> str:
        """Names example `index` to a reader, for instance by its file."""


def identity_of(split: str, labels_of: Source, files: Iterable[tuple[str, int]]) -> dict[str, Any]:
    """What stays the same wherever the data lie: split, classes, names and sizes of the files."""
    digest = hashlib.sha256()
    for name, size in files:
        digest.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
    return {
        "split": split,
        "examples": len(labels_of),
        "classes": list(labels_of.class_names),
        "files": digest.hexdigest(),
    }
