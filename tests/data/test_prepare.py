import shutil
import time
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from tensorboardX.record_writer import RecordWriter
from tensorflow_datasets.core import dataset_info

from sop.data import prepare, sources
from sop.errors import UsageError
from tests.launch import free_port


@pytest.fixture(scope="module")
def digits_as_tfrecord(tmp_path_factory):
    """What TFDS leaves that wrote digits with TensorFlow: TFRecord files, described so."""
    data_dir = tmp_path_factory.mktemp("tfds")
    folder = Path(prepare.prepare("digits", str(data_dir)))
    for path in folder.glob("*array_record*"):
        split = "train" if "train" in path.name else "test"
        records = sources.open_source("digits", split, str(data_dir))._records
        writer = RecordWriter(str(folder / path.name.replace("array_record", "tfrecord")))
        for index in range(len(records)):
            writer.write(records[index])
        writer.close()
    for path in folder.glob("*array_record*"):
        path.unlink()
    info = dataset_info.read_proto_from_builder_dir(folder)
    info.file_format = "tfrecord"
    dataset_info.write_dataset_info_proto(info, folder)
    return data_dir


@pytest.fixture
def tfrecord_dir(digits_as_tfrecord, tmp_path):
    return Path(shutil.copytree(digits_as_tfrecord, tmp_path / "tfds"))


def test_tfrecord_is_refused_with_the_command_and_converted_by_it(tfrecord_dir, tmp_path, capsys):
    options = ["digits", f"--data_dir={tfrecord_dir}"]
    for opened in (
        lambda: sources.open_source("digits", "train", str(tfrecord_dir)),
        lambda: prepare.prepare("digits", str(tfrecord_dir)),
    ):
        with pytest.raises(UsageError, match="is prepared as tfrecord") as refusal:
            opened()
        command = " ".join(["python -m sop.data.prepare", *options, "--convert"])
        assert str(refusal.value).endswith(f"run: {command}")
    prepare.main([*options, "--convert"])
    assert "digits is ready in" in capsys.readouterr().out
    prepare.main([*options, "--convert"])  # again: nothing to do
    fresh = str(tmp_path / "fresh")
    for split in ("train", "test"):
        converted = sources.open_source("digits", split, str(tfrecord_dir))
        original = sources.open_source("digits", split, fresh)
        assert [converted[i] for i in range(len(converted))] == [
            original[i] for i in range(len(original))
        ]


def test_a_tfrecord_file_that_is_cut_short_is_refused(tfrecord_dir):
    path = next(tfrecord_dir.rglob("*test.tfrecord*"))
    whole = path.read_bytes()
    assert len(list(prepare.tfrecords(path))) == 360
    for length in (len(whole) - 3, len(whole) - len(whole) // 3, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError, match="cut short"):
            prepare.convert("digits", str(tfrecord_dir))
    assert not list(tfrecord_dir.rglob("*test.array_record*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifar11"], "did you mean cifar10"),
        (["digits", "--convert"], "not prepared"),
        (["fgvc_aircraft"], "get them by hand.*fgvc-aircraft-2013b.tar.gz"),
        (["fgvc_aircraft", "--manual_dir=/no/such"], "missing in /no/such"),
    ],
)
def test_the_command_ends_with_one_sentence(arguments, message, tmp_path):
    with pytest.raises(UsageError, match=message) as refusal:
        prepare.main([*arguments, f"--data_dir={tmp_path}"])
    assert "\n" not in str(refusal.value)


def test_the_catalogue_needs_tensorflow(monkeypatch, tmp_path):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs TensorFlow; run: pip install -e '.\[prepare\]'"):
        prepare.prepare("cifar10", str(tmp_path))


def test_a_server_that_does_not_answer_is_said_within_seconds(tmp_path, monkeypatch):
    """Nothing listens at the port."""

    class FromNowhere(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({}))

        def _split_generators(self, dl_manager):
            dl_manager.download(f"http://127.0.0.1:{free_port()}/data.zip")

        def _generate_examples(self):
            yield from ()

    builder = FromNowhere(data_dir=tmp_path)
    monkeypatch.setattr(sources, "new_builder", lambda name, data_dir: builder)
    begun = time.monotonic()
    with pytest.raises(UsageError, match=r"'digits' cannot be downloaded: http://127.* not answer"):
        prepare.prepare("digits", str(tmp_path))
    assert time.monotonic() - begun < 20
