"""Images to ask a network about: arrays, files, folders or a split of a data set, in batches."""

import concurrent.futures
import dataclasses
import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from ml_collections import ConfigDict

from sop.data import transforms
from sop.data.folders import read_file
from sop.data.images import BadImageError, image_suffixes, without_orientation
from sop.data.sources import open_source
from sop.errors import UsageError, shorten, show
from sop.training.task import task_of

UNLABELLED = -1
_SPLIT = "split:"

Image = np.ndarray | str | os.PathLike


class Pictures(Protocol):
    """Some images in order."""

    @property
    def class_names(self) -> Sequence[str]:
        """What labels are numbers of."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes | np.ndarray, int]:
        """(encoded image or uint8 [H, W, 3], label or UNLABELLED)

        Raises:
          BadImageError: it cannot be read.
        """

    def describe(self, index: int) -> str:
        """Its name for a reader."""


@dataclasses.dataclass(frozen=True)
class Given:
    """Arrays and files that a program names one by one; see `given`."""

    images: Sequence[np.ndarray | Path]
    labels: Sequence[int] | None = None
    class_names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[bytes | np.ndarray, int]:
        image = self.images[index]
        label = self.labels[index] if self.labels else UNLABELLED
        return (image if isinstance(image, np.ndarray) else read_file(image)), label

    def describe(self, index: int) -> str:
        image = self.images[index]
        return f"number {index}" if isinstance(image, np.ndarray) else str(image)


def given(images: Image | Sequence[Image]) -> Given:
    """What `Run.predict` was given.

    Args:
      images: a path, uint8 [H, W, 3] or [B, H, W, 3], or a sequence of paths and uint8 [H, W, 3].
    Raises:
      UsageError: it is something else, or nothing.
    """
    one = isinstance(images, str | os.PathLike) or getattr(images, "ndim", 0) == 3
    each: Any = [images] if one else images
    found = [Path(x) if isinstance(x, str | os.PathLike) else _pixels(x) for x in each]
    if not found:
        raise UsageError("There are no images: give at least one.")
    return Given(found)


def _pixels(image: Any) -> np.ndarray:
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        raise UsageError(
            f"An image is an array {array.dtype} {list(array.shape)}: give uint8 [H, W, 3], RGB "
            "from 0 to 255, or the path of a file."
        )
    return array


def named(
    names: Sequence[str], config: ConfigDict, class_names: Sequence[str]
) -> tuple[Pictures, dict[str, Any] | None]:
    """What `--images` names, and what tells its data where it is a split.

    Args:
      names: files, globs and folders; or one 'split:NAME' of `config.input.dataset`. A file has the
        class that its folder is called like; in a folder that is named here, the class of the
        nearest folder above it, up to that one.
      config: says of which data set a split is.
      class_names: of the run.
    Raises:
      UsageError: a name leads to no image.
    """
    splits = [name for name in names if name.startswith(_SPLIT)]
    if splits and len(names) > 1:
        raise UsageError(f"--images names {show(splits[0])} and more: give the split alone.")
    if splits:
        split = splits[0].removeprefix(_SPLIT)
        source = open_source(config.input.dataset, split, config.input.data_dir)
        return source, source.identity
    numbers = {name: number for number, name in enumerate(class_names)}
    files: dict[Path, int] = {}
    for name in names:
        for file, folders in _files(name):
            labels = (numbers[each] for each in reversed(folders) if each in numbers)
            files.setdefault(file, next(labels, UNLABELLED))
    return Given(list(files), list(files.values()), class_names), None


class _Renumbered:
    """Pictures whose labels are other numbers."""

    def __init__(self, pictures: Pictures, class_names: Sequence[str], numbers: Sequence[int]):
        self._pictures, self._numbers = pictures, numbers
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> tuple[bytes | np.ndarray, int]:
        image, label = self._pictures[index]
        return image, self._numbers[label] if label >= 0 else UNLABELLED

    def describe(self, index: int) -> str:
        return self._pictures.describe(index)


def by_name(pictures: Pictures, class_names: Sequence[str]) -> Pictures:
    """Pictures with numbers of `class_names` as labels; none for a class not among them."""
    numbers = {name: number for number, name in enumerate(class_names)}
    theirs = [numbers.get(name, UNLABELLED) for name in pictures.class_names]
    return _Renumbered(pictures, class_names, theirs)


def _files(name: str) -> Sequence[tuple[Path, tuple[str, ...]]]:
    """The files that a name or glob leads to, each with the folders that may be its class."""
    path = Path(os.path.expanduser(name))
    try:
        if path.is_dir():
            return _in_folder(path)
        if path.exists():
            return [(path, (path.absolute().parent.name,))]
        found = [Path(each) for each in sorted(glob.glob(str(path), recursive=True))]
    except OSError as error:  # a name that no file can have
        raise UsageError(f"There is no image {shorten(name)}: check --images.") from error
    files = [(each, (each.absolute().parent.name,)) for each in found if each.is_file()]
    if not files:
        what = "No file matches" if glob.has_magic(name) else "There is no file or folder"
        raise UsageError(f"{what} {shorten(name)}: check --images.")
    return files


def _in_folder(folder: Path) -> list[tuple[Path, tuple[str, ...]]]:
    files, own = [], folder.absolute().name
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(each for each in folders if each[0] != ".")
        inside = Path(place).relative_to(folder).parts
        for name in sorted(names):
            if name[0] != "." and os.path.splitext(name)[1].lower() in image_suffixes():
                files.append((Path(place) / name, (own, *inside)))
    if not files:
        raise UsageError(
            f"Folder {folder} has no images: name one that holds .jpg, .png, .webp or others."
        )
    return files


def evaluation_transforms(config: ConfigDict) -> tuple[str, str]:
    """Key and text of the transforms that `--mode=eval` takes, of a config without stages."""
    name = "eval_transforms" if config.input.test_transforms is None else "test_transforms"
    return name, config.input[name]


def evaluation_pipeline(config: ConfigDict) -> Any:
    """The same, parsed as its task does.

    Raises:
      UsageError: they cannot be.
    """
    name, text = evaluation_transforms(config)
    return task_of(config.model).parse_transforms(text, training=False, name=name)


class Batch(NamedTuple):
    """Some pictures as a network takes them.

    Attributes:
      first: number of the first of them.
      images: uint8 [n, (V,) H, W, 3]; black where a picture cannot be decoded.
      labels: int [n], or UNLABELLED.
      bad: row → why it cannot be decoded.
    """

    first: int
    images: np.ndarray
    labels: np.ndarray
    bad: dict[int, str]


@dataclasses.dataclass
class Loader:
    """Pictures → batches, transformed as the run's `--mode=eval` does, ahead in threads.

    Attributes:
      pipeline: of evaluation; nothing in it is random.
      obey_exif: turn a JPEG as its EXIF orientation says.
      num_workers: threads.
    """

    pipeline: transforms.Pipeline
    obey_exif: bool
    num_workers: int

    @classmethod
    def of(cls, config: ConfigDict) -> "Loader":
        """That of a config without stages."""
        obey_exif = config.input.exif == "obey"
        return cls(evaluation_pipeline(config), obey_exif, config.input.num_workers)

    def one(self, image: bytes | np.ndarray) -> np.ndarray:
        """uint8 [(V,) H, W, 3].

        Raises:
          BadImageError: it cannot be decoded.
        """
        if isinstance(image, np.ndarray):
            return self.pipeline(image[None], np.zeros((1, 0)))[0]
        data = image if self.obey_exif else without_orientation(image)
        return self.pipeline.decode(data, np.zeros(0))

    def batches(self, pictures: Pictures, size: int) -> Iterator[Batch]:
        """All of them, the last batch shorter.

        Raises:
          UsageError: they become of different sizes.
        """
        shape: tuple[int, ...] | None = None
        for first, rows in self._decoded(pictures, size):
            good = [image for image, _ in rows if isinstance(image, np.ndarray)]
            shape = shape or (good[0].shape if good else None)
            for row, (image, _) in enumerate(rows):
                if isinstance(image, np.ndarray) and image.shape != shape:
                    raise UsageError(
                        f"The image {pictures.describe(first + row)} becomes {_by(image.shape)}, "
                        f"others {_by(shape)}: add a transform that fixes the size, such as "
                        "--config.input.test_transforms='resize_short(256) | center_crop(224)'."
                    )
            black = np.zeros(shape or (1, 1, 3), np.uint8)
            yield Batch(
                first,
                np.stack([each if isinstance(each, np.ndarray) else black for each, _ in rows]),
                np.array([label for _, label in rows]),
                {row: each for row, (each, _) in enumerate(rows) if isinstance(each, str)},
            )

    def _decoded(self, pictures, size) -> Iterator[tuple[int, list[tuple[np.ndarray | str, int]]]]:
        """(first number, [(image or why there is none, label)]) for each batch."""

        def load(number: int) -> tuple[np.ndarray | str, int]:
            label = UNLABELLED
            try:
                image, label = pictures[number]
                return self.one(image), int(label)
            except BadImageError as error:
                return str(error), int(label)

        starts = range(0, len(pictures), size)
        with concurrent.futures.ThreadPoolExecutor(max(self.num_workers, 1)) as threads:

            def begin(start: int):
                numbers = range(start, min(start + size, len(pictures)))
                return start, [threads.submit(load, number) for number in numbers]

            waiting = [begin(start) for start in itertools.islice(starts, 2)]
            following = iter(starts[2:])
            while waiting:
                first, rows = waiting.pop(0)
                decoded = [row.result() for row in rows]
                waiting += [begin(start) for start in itertools.islice(following, 1)]
                yield first, decoded


def _by(shape: tuple[int, ...] | None) -> str:
    return "×".join(map(str, (shape or ())[-3:-1]))
