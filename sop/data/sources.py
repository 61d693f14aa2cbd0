"""Where examples come from: data sets prepared by TFDS as ArrayRecord, and folders of images.

A source gives any example of a split by its index, still encoded, without reading the others.
"""

import collections
import contextlib
import difflib
import functools
import hashlib
import io
import os
import stat
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import file_adapters, naming, registered

from sop.data.aircraft import FgvcAircraft
from sop.data.digits import Digits
from sop.data.images import BadImageError, encode, image_suffixes, without_orientation
from sop.data.mnist_5k import Mnist5k
from sop.data.textures import Textures
from sop.data.typefaces import Typefaces
from sop.errors import UsageError, shorten
from sop.import_path import import_object, is_import_path

# Names that importing the builders has made known to TFDS; they are prepared without TensorFlow.
_PREPARED_ON_USE = (Digits.name, Mnist5k.name, Textures.name, Typefaces.name)
OWN_BUILDERS = (*_PREPARED_ON_USE, FgvcAircraft.name)
RANDOM_ACCESS = file_adapters.FileFormat.ARRAY_RECORD
_FOLDER = "folder:"


class Source(Protocol):
    """The examples of one split, in a fixed order."""

    class_names: list[str]
    image_size: tuple[int, int] | None  # height, width, where known to be the same for all
    identity: dict[str, Any]  # what tells it from other data: see `_identity`

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        """(encoded image, label)

        Raises:
          BadImageError: the file of the image cannot be read.
        """

    def describe(self, index: int) -> str:
        """Names example `index` to a reader, for instance by its file."""


def _identity(split: str, labels_of: "Source", files: Iterable[tuple[str, int]]) -> dict[str, Any]:
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


def open_source(dataset: str, split: str, data_dir: str | None = None) -> Source:
    """Opens a split of a data set.

    Args:
      dataset: 'folder:/path', a TFDS name with or without config and version ('cifar10:3.0.2'), or
        the import path of a class of sources or of a TFDS builder. 'digits', 'mnist_5k', 'textures'
        and 'typefaces' are prepared on first use.
      split: Its name, or parts and sums, 'train[:90%]', 'train+validation'.
      data_dir: Of TFDS; None means TFDS's own default.

    Raises:
      UsageError: The data set is unknown, not prepared or not readable at random, or has no such
        split; a folder has no images, or a class is missing in one split.
    """
    if dataset.startswith(_FOLDER):
        return FolderSource(Path(os.path.expanduser(dataset.removeprefix(_FOLDER))), split)
    if is_import_path(dataset):
        found = import_object("data set", dataset)
        if not _is_builder(found):
            return OwnSource(dataset, found, split)
    return TFDSSource(dataset, split, data_dir)


def _is_builder(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, tfds.core.DatasetBuilder)


class OwnSource:
    """A split of a user's own: a class, or function, called with the name of the split.

    What it gives has `class_names`, a length, and by index (encoded image, label), or a uint8 array
    [H,W,3] in the place of the first. It may have what else a `Source` has; `identity` holds the
    split and the classes if it does not say more.

    Raises:
      UsageError: it has not, or the user's code raises ValueError or KeyError for the split.
    """

    def __init__(self, dataset: str, make: Any, split: str):
        self._dataset = dataset
        if not callable(make):
            raise UsageError(
                f"Data set {dataset!r} is no class or function of the name of a split."
            )
        try:
            self._source = make(split)
        except (ValueError, KeyError) as error:
            raise UsageError(
                f"Data set {dataset!r} does not open the split {split!r} ({error}); set "
                "config.input.train_split and config.input.eval_split to splits that it has."
            ) from error
        for name in ("class_names", "__len__", "__getitem__"):
            if not hasattr(self._source, name):
                raise UsageError(
                    f"Data set {dataset!r} gives a {type(self._source).__name__} without {name}; "
                    "see docs/data.md for what a source has."
                )
        self.class_names = list(self._source.class_names)
        self.image_size = getattr(self._source, "image_size", None)
        own = getattr(self._source, "identity", None)
        self.identity = {**_identity(split, self, []), **(own or {})}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        image, label = self._source[index]
        if isinstance(image, bytes):
            return image, int(label)
        if getattr(image, "dtype", None) != np.uint8 or image.shape[2:] != (3,):
            raise BadImageError("it is neither bytes nor an array uint8 [H, W, 3]")
        return encode(image), int(label)

    def describe(self, index: int) -> str:
        own = getattr(self._source, "describe", None)
        return own(index) if own else f"example {index} of {self._dataset}"


class Unturned:
    """Another source, whose JPEGs have lost their EXIF orientation."""

    def __init__(self, source: Source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        data, label = self._source[index]
        return without_orientation(data), label

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


class TFDSSource:
    """A split of a data set that TFDS has prepared; TensorFlow is not imported."""

    def __init__(self, dataset: str, split: str, data_dir: str | None = None):
        self._refused = functools.partial(_damage_refused, dataset, data_dir)
        with self._refused():
            builder = _open_builder(dataset, data_dir)
            self._name = f"{builder.info.full_name}, split {split!r}"
            self._open(builder, dataset, data_dir, split)
            self.identity = _identity(split, self, _records_of(builder))

    def _open(self, builder, dataset, data_dir, split):
        check_random_access(builder, dataset, data_dir)
        image_key, label_key = _supervised_keys(builder, dataset)
        features = builder.info.features
        self.class_names = list(features[label_key].names)
        height, width, _ = features[image_key].shape
        self.image_size = (height, width) if height and width else None
        try:
            self._records = builder.as_data_source(
                split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )
        except ValueError as error:
            known = ", ".join(sorted(builder.info.splits))
            if split in builder.info.splits:
                raise
            raise UsageError(
                f"Data set {dataset!r} has no split {split!r}; set config.input.train_split and "
                f"config.input.eval_split to one of {known}, or to parts or sums of these."
            ) from error
        # Only these two are parsed: a record may hold more images, as segmentation masks.
        self._features = tfds.features.FeaturesDict(
            {"image": features[image_key], "label": features[label_key]}
        )
        self._keys = image_key, label_key

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        with self._refused():
            example = self._features.deserialize_example_np(
                self._records[index], decoders={"image": tfds.decode.SkipDecoding()}
            )
            return example["image"], example["label"]

    def describe(self, index: int) -> str:
        return f"record {index} of {self._name}"


@contextlib.contextmanager
def _damage_refused(dataset: str, data_dir: str | None) -> Iterator[None]:
    """Names the data set and the remedy where its files are not what TFDS has written."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # TFDS, protobuf and ArrayRecord raise many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:160]
        raise UsageError(
            f"Data set {dataset!r} in {data_dir or tfds.core.constants.DATA_DIR} is damaged "
            f"({reason}): remove its folder there and run: {prepare_command(dataset, data_dir)}"
        ) from error


def _records_of(builder: tfds.core.DatasetBuilder) -> list[tuple[str, int]]:
    """Name and size of each file of records."""
    files = (path for path in Path(builder.data_dir).iterdir() if ".array_record" in path.name)
    return [
        (builder.info.full_name, 0),
        *sorted((path.name, path.stat().st_size) for path in files),
    ]


def prepare_command(dataset: str, data_dir: str | None, *options: str) -> str:
    """The command line that prepares `dataset` where `open_source` looks for it."""
    where = [f"--data_dir={data_dir}"] if data_dir else []
    return " ".join(["python -m sop.data.prepare", dataset, *where, *options])


def _tfds_name(dataset: str) -> str:
    """The name that TFDS has for a data set: that of the builder behind an import path, or itself.

    Importing a builder makes it known to TFDS.
    """
    if not is_import_path(dataset):
        return dataset
    found = import_object("data set", dataset)
    if not _is_builder(found):
        raise UsageError(
            f"Data set {dataset!r} is no TFDS builder: it needs no preparation; name it in "
            "config.input.dataset."
        )
    return found.name


def builder_name(dataset: str) -> str:
    """'name/config:1.2.3' → 'name'.

    Raises:
      UsageError: It is no name, or one that TFDS does not know (other names close to it are given).
    """
    name = _tfds_name(dataset)
    try:
        name = naming.parse_builder_name_kwargs(name)[0].name
    except ValueError as error:
        raise UsageError(
            f"Data set {dataset!r} cannot be read as a name; write 'name', 'name/config', "
            "'name:1.2.3', 'folder:/path' or 'package.module:Class' in config.input.dataset."
        ) from error
    known = tfds.list_builders(with_community_datasets=False)
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "tfds.list_builders() lists all."
    raise UsageError(f"There is no data set {dataset!r} for config.input.dataset; {hint}")


def new_builder(dataset: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The builder whose code TFDS or we have, whether its data are prepared or not.

    Raises:
      UsageError: The name, config or version is unknown.
    """
    name = builder_name(dataset)
    try:
        return tfds.builder(_tfds_name(dataset), data_dir=data_dir)
    except (ValueError, AssertionError) as error:
        builder_class = tfds.builder_cls(name)
        configs = ", ".join(builder_class.builder_configs) or "none"
        raise UsageError(
            f"There is no config or version {dataset.removeprefix(name)!r} of data set {name!r}; "
            f"its configs are {configs}, its version is {builder_class.VERSION}."
        ) from error


def find_prepared(dataset: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The data set as TFDS has prepared it, in any file format, read from its own description.

    Raises:
      UsageError: It is unknown or not prepared.
    """
    name = _tfds_name(dataset)
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except (registered.DatasetNotFoundError, ValueError) as error:
        builder_name(dataset)
        raise UsageError(
            f"Data set {dataset!r} is not prepared in {data_dir or tfds.core.constants.DATA_DIR}; "
            f"run: {prepare_command(dataset, data_dir)}"
        ) from error


def _open_builder(dataset: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    name = dataset.partition(":")[0]
    # What lies in a folder of the user's own is prepared by the command, which is told the folder.
    if name.partition("/")[0] not in _PREPARED_ON_USE or name.endswith("/own"):
        return find_prepared(dataset, data_dir)
    builder = new_builder(dataset, data_dir)
    if not builder.data_path.exists():
        _prepare_quietly(builder)
    return tfds.builder_from_directory(builder.data_path)


def _prepare_quietly(builder: tfds.core.DatasetBuilder) -> None:
    try:
        with contextlib.redirect_stdout(io.StringIO()), _no_progress_bars():
            builder.download_and_prepare(file_format=RANDOM_ACCESS)
    except OSError as error:
        # TFDS writes beside the final folder and renames; only one of several processes can.
        if not builder.data_path.exists():
            raise UsageError(
                f"Data set {builder.name!r} cannot be prepared ({error}); set "
                "config.input.data_dir to a folder that can be written."
            ) from error


@contextlib.contextmanager
def _no_progress_bars():
    tfds.display_progress_bar(False)
    try:
        yield
    finally:
        tfds.display_progress_bar(True)


def check_random_access(
    builder: tfds.core.DatasetBuilder, dataset: str, data_dir: str | None
) -> None:
    formats = builder.info.available_file_formats()
    if formats.isdisjoint(file_adapters.FileFormat.with_random_access()):
        found = ", ".join(sorted(each.value for each in formats))
        raise UsageError(
            f"Data set {dataset!r} in {builder.data_dir} is prepared as {found}, which cannot be "
            f"read at random; run: {prepare_command(dataset, data_dir, '--convert')}"
        )


def _supervised_keys(builder: tfds.core.DatasetBuilder, dataset: str) -> tuple[str, str]:
    features = builder.info.features
    match builder.info.supervised_keys:
        case (image, label) if isinstance(features[image], tfds.features.Image) and isinstance(
            features[label], tfds.features.ClassLabel
        ):
            return image, label
    raise UsageError(
        f"Data set {dataset!r} does not hold images with one label each; choose one for image "
        "classification in config.input.dataset."
    )


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
        self.identity = _identity(split, self, ((name, size) for name, size, _ in files))
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
