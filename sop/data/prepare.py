"""Prepares a data set for training: python -m sop.data.prepare DATASET [--data_dir=DIR].

It downloads what TFDS can download and writes ArrayRecord, which can be read at random. With
--convert it makes ArrayRecord out of the TFRecord that TFDS has written before, and beside it.
Preparing a data set of the TFDS catalogue needs TensorFlow (pip install -e '.[prepare]');
preparing our own and converting do not.
"""

import concurrent.futures
import contextlib
import importlib.util
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_info, file_adapters
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.utils import py_utils

from sop.command import Parser, run
from sop.data import sources
from sop.errors import UsageError
from sop.import_path import is_import_path
from sop.interruption import Unwinding
from sop.progress import shown


def prepare(dataset: str, data_dir: str | None = None, manual_dir: str | None = None) -> str:
    """Downloads and writes `dataset` as ArrayRecord; returns its folder.

    Args:
      dataset: As in config.input.dataset: 'name', 'name/config', 'name:1.2.3', or the import path
        of a builder of the user's own, which needs TensorFlow if it leaves encoding to TFDS.
      data_dir: The folder of all TFDS data sets; None: TFDS's own default.
      manual_dir: Where files lie that are downloaded by hand; None: DATA_DIR/downloads/manual.

    Raises:
      UsageError: The name is unknown; TensorFlow or files downloaded by hand are missing; the data
        set is there already, as TFRecord; or a server does not answer.
    """
    name = sources.builder_name(dataset)
    of_catalogue = name not in sources.OWN_BUILDERS and not is_import_path(dataset)
    if of_catalogue and not importlib.util.find_spec("tensorflow"):
        raise UsageError(
            f"Preparing {dataset!r} needs TensorFlow; run: pip install -e '.[prepare]'"
        )
    builder = sources.new_builder(dataset, data_dir)
    if builder.data_path.exists():
        prepared = tfds.builder_from_directory(builder.data_path)
        sources.check_random_access(prepared, dataset, data_dir)
        return os.fspath(builder.data_path)
    options = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        with _few_retries():
            builder.download_and_prepare(download_config=options, file_format=sources.RANDOM_ACCESS)
    except requests.RequestException as error:
        asked = error.request.url if error.request is not None else "its server"
        raise UsageError(
            f"Data set {dataset!r} cannot be downloaded: {asked} does not answer "
            f"({type(error).__name__}); check the network, or prepare it on a machine that has one "
            "and copy its folder."
        ) from error
    except (AssertionError, FileNotFoundError) as error:
        if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            raise
        instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        folder = manual_dir or Path(data_dir or tfds.core.constants.DATA_DIR, "downloads", "manual")
        raise UsageError(
            f"Files of data set {dataset!r} are missing in {folder}; get them by hand, or name "
            f"their folder by --manual_dir: {instructions}"
        ) from error
    return os.fspath(builder.data_path)


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """TFDS asks ten times, in ever longer intervals, for 100 seconds."""
    before = downloader.MAX_RETRIES
    downloader.MAX_RETRIES = 3
    try:
        yield
    finally:
        downloader.MAX_RETRIES = before


def convert(dataset: str, data_dir: str | None = None) -> str:
    """Writes ArrayRecord files beside the TFRecord files of a prepared data set.

    The records stay as they are, byte for byte and in their order. A run that was interrupted goes
    on where it was. Returns the folder.

    Raises:
      UsageError: The data set is not prepared, or in another format than TFRecord.
    """
    builder = sources.find_prepared(dataset, data_dir)
    folder = Path(builder.data_path)
    formats = builder.info.available_file_formats()
    if sources.RANDOM_ACCESS in formats:
        return os.fspath(folder)
    if file_adapters.FileFormat.TFRECORD not in formats:
        raise UsageError(
            f"Data set {dataset!r} in {folder} is not in TFRecord; delete it and run: "
            f"{sources.prepare_command(dataset, data_dir)}"
        )
    shards = [shard for split in builder.info.splits.values() for shard in _shards(split)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        parts = ((1, name) for name in pool.map(_convert_shard, shards))
        for name in shown(parts, len(shards), "converting", "shard"):
            print(name, flush=True)
    info = dataset_info.read_proto_from_builder_dir(folder)
    info.alternative_file_formats.append(sources.RANDOM_ACCESS.value)
    dataset_info.write_dataset_info_proto(info, folder)
    return os.fspath(folder)


def _shards(split: tfds.core.SplitInfo) -> list[tuple[Path, Path]]:
    """(TFRecord file, ArrayRecord file) of each shard."""
    old, new = (
        split.filename_template.replace(filetype_suffix=each.file_suffix).sharded_filepaths(
            split.num_shards
        )
        for each in (file_adapters.FileFormat.TFRECORD, sources.RANDOM_ACCESS)
    )
    return [(Path(each), Path(other)) for each, other in zip(old, new, strict=True)]


def _convert_shard(paths: tuple[Path, Path]) -> str:
    old, new = paths
    if not new.exists():
        with py_utils.incomplete_file(new) as temporary:
            file_adapters.ADAPTER_FOR_FORMAT[sources.RANDOM_ACCESS].write_examples(
                temporary, enumerate(tfrecords(old))
            )
    return new.name


def tfrecords(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: each is length, checksum, data, checksum.

    Raises:
      UsageError: The file ends within a record.
    """
    with path.open("rb") as file:
        while header := file.read(12):
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else 0
            record = file.read(length + 4)
            if len(header) < 12 or len(record) < length + 4:
                raise UsageError(f"The file {path} is cut short; prepare its data set again.")
            yield record[:length]


def main(arguments: Sequence[str]) -> None:
    parser = Parser(prog="python -m sop.data.prepare", description=__doc__)
    parser.add_argument(
        "dataset",
        help="as config.input.dataset: name, name/config, name:1.2.3, package.module:Builder",
    )
    parser.add_argument("--data_dir", help="folder of all TFDS data sets")
    parser.add_argument("--manual_dir", help="folder of files that were downloaded by hand")
    parser.add_argument("--convert", action="store_true", help="TFRecord → ArrayRecord")
    options = parser.parse_args(arguments)
    with Unwinding():
        if options.convert:
            folder = convert(options.dataset, options.data_dir)
        else:
            folder = prepare(options.dataset, options.data_dir, options.manual_dir)
    print(f"{options.dataset} is ready in {folder}.")


if __name__ == "__main__":
    run(main)
