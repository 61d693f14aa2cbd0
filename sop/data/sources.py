"""Where examples come from: data sets prepared by TFDS as ArrayRecord, folders, a user's classes.

A source gives any example of a split by its index, still encoded, without reading the others.
"""

import contextlib
import difflib
import functools
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import file_adapters, naming, registered

from sop.data.aircraft import FgvcAircraft
from sop.data.digit_scenes import DigitScenes
from sop.data.digits import Digits
from sop.data.folders import FolderSource
from sop.data.images import BadImageError, encode, without_orientation
from sop.data.mnist_5k import Mnist5k
from sop.data.source import Source, identity_of
from sop.data.textures import Textures
from sop.data.typefaces import Typefaces
from sop.errors import UsageError
from sop.import_path import import_object, is_import_path

# Names that importing the builders has made known to TFDS; they are prepared without TensorFlow.
_PREPARED_ON_USE = tuple(
    builder.name for builder in (Digits, DigitScenes, Mnist5k, Textures, Typefaces)
)
OWN_BUILDERS = (*_PREPARED_ON_USE, FgvcAircraft.name)
RANDOM_ACCESS = file_adapters.FileFormat.ARRAY_RECORD
_FOLDER = "folder:"


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
        self.identity = {**identity_of(split, self, []), **(own or {})}

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
            self.identity = identity_of(split, self, _records_of(builder))

    def _open(self, builder, dataset, data_dir, split):
        check_random_access(builder, dataset, data_dir)
        # Only these are parsed: a record may hold more images, as segmentation masks.
        self._features = tfds.features.FeaturesDict(self._choose(builder, dataset))
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

    def _choose(self, builder: tfds.core.DatasetBuilder, dataset: str) -> dict[str, Any]:
        """The features that are read of an example."""
        image_key, label_key = _supervised_keys(builder, dataset)
        features = builder.info.features
        self.class_names = list(features[label_key].names)
        height, width, _ = features[image_key].shape
        self.image_size = (height, width) if height and width else None
        return {"image": features[image_key], "label": features[label_key]}

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
