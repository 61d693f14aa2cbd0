"""Images in folders of a user, one for each class."""

import collections
import hashlib
import os
import stat
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from sop.data.images import BadImageError, image_suffixes
from sop.data.source import identity_of
from sop.errors import UsageError, shorten


class FolderSource:
    """The tree split/class/image of a user; classes are numbered in the order of their names.

    A split is a folder, or parts and sums of some as in TFDS. A part is one of the images in the
    order of a hash of their names, so that it holds some of every class, the same on every machine.
    """

    image_size = None

    def __init__(self, root: Path, split: str):
        splits, left_out = _images_by_split(root)
        self.class_names = sorted({name for classes in splits.values() for name in classes})
        whole = split in splits
        parts = [(split, slice(None))] if whole else _parts(root, split, splits)
        for each, classes in splits.items():
            if missing := [name for name in self.class_names if not classes.get(name)]:
                raise UsageError(
                    f"Folder {root / each} has no images of class {missing[0]!r}, which "
                    "another split has; add some, or remove the class from the other."
                )
        files = [
            (name if whole else f"{each}/{name}", size, label)
            for each, part in parts
            for name, size, label in _files(splits[each], self.class_names, part)
        ]
        if not files:
            raise UsageError(
                f"Split {split!r} of folder {root} holds no image; take a larger part in "
                "config.input.train_split and config.input.eval_split."
            )
        self._folder = root / split if whole else root
        self._examples = [(name, label) for name, _, label in files]
        self.identity = identity_of(split, self, ((name, size) for name, size, _ in files))
        for each in dict(parts):
            count = sum(map(len, splits[each].values()))
            _say_left_out(root / each, count, left_out[each])

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        name, label = self._examples[index]
        return read_file(self._folder / name), label

    def describe(self, index: int) -> str:
        return str(self._folder / self._examples[index][0])


def _parts(root: Path, split: str, splits: Mapping[str, Any]) -> list[tuple[str, slice]]:
    """'train[:10%]+test' → [('train', slice(0, …)), ('test', slice(None))]."""
    known = {
        name: types.SimpleNamespace(num_examples=sum(map(len, classes.values())), shard_lengths=())
        for name, classes in splits.items()
    }
    try:
        found = tfds.core.ReadInstruction.from_spec(split).to_absolute(known)
    except (ValueError, AssertionError) as error:
        raise UsageError(
            f"Folder {root} has no split {split!r}; set config.input.train_split and "
            f"config.input.eval_split to one of {', '.join(splits)}, or to parts or sums of these, "
            "'train[:90%]'."
        ) from error
    return [(each.splitname, slice(each.from_, each.to)) for each in found]


def _files(
    classes: Mapping[str, "_Images"], names: Sequence[str], part: slice
) -> list[tuple[str, int, int]]:
    """(name, size, label) of each image of a part of a split, in the order of labels and names."""
    files = [
        (f"{name}/{file}", size, label)
        for label, name in enumerate(names)
        for file, size in classes[name].items()
    ]
    if part == slice(None):
        return files
    drawn = sorted(range(len(files)), key=lambda index: _digest(files[index][0]))
    return [files[index] for index in sorted(drawn[part])]


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()


def read_file(path: Path) -> bytes:
    try:
        # A pipe that nobody writes to would be waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BadImageError("it is no file")
            return file.read()
    except OSError as error:
        raise BadImageError(f"it cannot be read ({error.strerror})") from error


# Names and sizes of the images of a folder; -1 for what is no file.
_Images = dict[str, int]


def _images_by_split(
    root: Path,
) -> tuple[dict[str, dict[str, _Images]], dict[str, collections.Counter[str]]]:
    """{split: {class: images}} of a tree, and what was left out by split.

    Splits without any class folder are left out.
    """
    if not os.path.isdir(root):  # False too for a name that no folder can have
        raise UsageError(
            f"Folder {shorten(str(root))} of config.input.dataset does not exist; write "
            "folder:/path/to/a/folder that holds train/CLASS/*.jpg."
        )
    left_out: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    splits = {
        split.name: {each.name: _images(each, left_out[split.name]) for each in _folders(split)}
        for split in _folders(root)
    }
    splits = {name: classes for name, classes in splits.items() if classes}
    if not any(images for classes in splits.values() for images in classes.values()):
        raise UsageError(
            f"Folder {root} has no images; put .jpg, .png, .webp or other image files into "
            "train/CLASS/ and test/CLASS/."
        )
    return splits, left_out


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_dir() and each.name[0] != ".")


def _images(path: Path, left_out: collections.Counter[str]) -> _Images:
    """The images of a folder, in the order of their names; what is none is counted by its kind."""
    images = {}
    with os.scandir(path) as entries:
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                left_out["hidden"] += 1
            elif suffix not in image_suffixes():
                left_out[suffix or "without suffix"] += 1
            else:
                images[entry.name] = _size(entry)
    return dict(sorted(images.items()))


def _size(entry: os.DirEntry) -> int:
    try:
        found = entry.stat()
    except OSError:  # a link that leads nowhere
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _say_left_out(folder: Path, taken: int, left_out: collections.Counter[str]) -> None:
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common())
        total = taken + left_out.total()
        print(f"{folder}: {left_out.total()} of {total} files left out ({kinds}).", file=sys.stderr)
