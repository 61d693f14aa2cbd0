import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sop.data import prepare, sources
from sop.data.images import BadImageError, decode, encode
from sop.errors import UsageError


def make_folder(root, splits):
    """splits: {split: {class: file names}}; each file gets its own grey."""
    for split, classes in splits.items():
        for name, files in classes.items():
            (root / split / name).mkdir(parents=True)
            for value, file in enumerate(files):
                cv2.imwrite(str(root / split / name / file), np.full((4, 4, 3), value, np.uint8))
    return f"folder:{root}"


@pytest.fixture
def folder(tmp_path):
    classes = {"cat": ["a.jpg", "b.PNG"], "ant": ["c.jpeg"], "dog": ["d.png"]}
    return make_folder(tmp_path / "own", {"train": classes, "test": classes})


def refuse(message, dataset, split="train", data_dir=None):
    with pytest.raises(UsageError, match=message) as refusal:
        sources.open_source(dataset, split, data_dir)
    assert "\n" not in str(refusal.value)


def test_a_folder_is_numbered_by_the_names_of_its_classes(folder, tmp_path):
    (tmp_path / "own" / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "own" / ".hidden").mkdir()
    source = sources.open_source(folder, "train")
    assert source.class_names == ["ant", "cat", "dog"]
    assert [source[index][1] for index in range(len(source))] == [0, 1, 1, 2]
    assert source.describe(2).endswith("train/cat/b.PNG")
    assert source[2][0] == (tmp_path / "own" / "train" / "cat" / "b.PNG").read_bytes()


def test_a_folder_that_cannot_be_used_is_refused(folder, tmp_path):
    refuse("has no split 'validation'; .*one of test, train", folder, "validation")
    refuse("does not exist", "folder:/no/such/folder")
    refuse("does not exist", f"folder:{'x' * 300}")
    refuse("does not exist", "folder:~nobody-of-this-name")
    (tmp_path / "empty" / "train" / "cat").mkdir(parents=True)
    refuse("has no images", f"folder:{tmp_path / 'empty'}")
    (tmp_path / "own" / "test" / "dog" / "d.png").unlink()
    refuse("test has no images of class 'dog', which another split has", folder)
    (tmp_path / "own" / "test" / "dog").rmdir()
    refuse("test has no images of class 'dog'", folder, "test")


def test_parts_of_a_folder_share_its_images_and_hold_all_classes(tmp_path):
    files = {name: [f"{name}{i}.png" for i in range(40)] for name in ("ant", "bee", "cat")}
    few = {name: [f"{name}.png"] for name in files}
    folder = make_folder(tmp_path / "own", {"train": files, "test": few})

    def names(split):
        source = sources.open_source(folder, split)
        labels = [source[index][1] for index in range(len(source))]
        assert len(labels) == source.identity["examples"]
        assert source.identity["split"] == split
        found = [source.describe(index) for index in range(len(source))]
        assert [os.path.basename(name)[:3] for name in found] == [
            source.class_names[label] for label in labels
        ]
        return found

    whole, first, rest = names("train"), names("train[:25%]"), names("train[25%:]")
    assert len(first) == 30 and len(rest) == 90
    assert sorted(first + rest) == sorted(whole)
    assert first == sorted(first)
    shares = [sum(f"/{name}/" in each for each in first) for name in files]
    assert min(shares) >= 4
    assert names("train[:30]") == first and names("train[-90:]") == rest
    assert names("test+train[:25%]") == names("test") + first
    assert len(names("train[10:20]")) == 10
    (tmp_path / "own" / "train" / "bee" / "another.png").write_bytes(
        (tmp_path / "own" / "train" / "bee" / "bee0.png").read_bytes()
    )
    assert (
        len(
            set(sources.open_source(folder, "train[:30]")._examples)
            & {
                (os.path.relpath(name, tmp_path / "own"), "abc".index(os.path.basename(name)[0]))
                for name in first
            }
        )
        >= 29
    )  # a new image moves one at most
    for split in ("train[:1000]", "train[", "train[:0x1]", "none[:10%]"):
        refuse("has no split .* or to parts or sums of these", folder, split)
    refuse(
        "Split 'train.:0%.' of folder .* holds no image; take a larger part", folder, "train[:0%]"
    )


class Stripes:
    """A source of a user's own, of arrays or of encoded images."""

    class_names = ("rows", "columns")

    def __init__(self, split):
        self.size = {"train": 6, "test": 2}[split]

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        image = np.zeros((4, 4, 3), np.uint8)
        image[(index // 2, slice(None), 0) if index % 2 == 0 else (slice(None), index // 2, 1)] = 9
        return image, index % 2


class Encoded(Stripes):
    image_size = (4, 4)
    identity: ClassVar = {"files": "version 2"}

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return encode(image), label

    def describe(self, index):
        return f"stripe {index}"


class Floats(Stripes):
    def __getitem__(self, index):
        return super().__getitem__(index)[0] / 2, 0


def nothing(split):
    return [split]


def test_a_source_of_a_users_own():
    source = sources.open_source(f"{__name__}:Stripes", "train")
    assert len(source) == 6 and source.class_names == ["rows", "columns"]
    data, label = source[3]
    assert label == 1
    np.testing.assert_array_equal(decode(data), Stripes("train")[3][0])
    assert source.describe(3) == f"example 3 of {__name__}:Stripes" and source.image_size is None
    assert source.identity["split"] == "train" and source.identity["examples"] == 6
    own = sources.open_source(f"{__name__}:Encoded", "train")
    assert own[3] == (data, label) and own.describe(3) == "stripe 3" and own.image_size == (4, 4)
    changed = {key for key, value in own.identity.items() if value != source.identity[key]}
    assert changed == {"files"}


def test_a_source_that_cannot_be_used_is_refused():
    refuse("Stripes' does not open the split 'all' .*set config", f"{__name__}:Stripes", "all")
    refuse("'no_such:Data' cannot be imported: No module", "no_such:Data")
    refuse("test_sources:nothing' gives a list without class_names; see", f"{__name__}:nothing")
    refuse("is no class or function of the name of a split", f"{__name__}:__doc__")
    floats = sources.open_source(f"{__name__}:Floats", "train")
    with pytest.raises(BadImageError, match="neither bytes nor an array uint8"):
        floats[0]


class OwnStripes(tfds.core.GeneratorBasedBuilder):
    """The same as a TFDS builder that encodes its images by itself."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 4, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["rows", "columns"]),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
        source = Encoded(split)
        for index in range(len(source)):
            image, label = source[index]
            yield index, {"image": image, "label": label}


def test_a_builder_of_a_users_own_is_prepared_and_read(tmp_path):
    dataset, data_dir = f"{__name__}:OwnStripes", str(tmp_path)
    command = f"run: python -m sop.data.prepare {dataset} --data_dir={data_dir}$"
    refuse(f"OwnStripes' is not prepared in .*{command}", dataset, data_dir=data_dir)
    prepare.prepare(dataset, data_dir)
    source = sources.open_source(dataset, "train[:50%]+test", data_dir)
    assert len(source) == 3 + 2 and source.class_names == ["rows", "columns"]
    assert decode(source[0][0]).shape == (4, 4, 3)
    refuse("has no split 'validation'", dataset, "validation", data_dir)
    with pytest.raises(UsageError, match="Stripes' is no TFDS builder: it needs no preparation"):
        prepare.prepare(f"{__name__}:Stripes", data_dir)


def test_unknown_names_are_refused_with_names_like_them(tmp_path):
    refuse("no data set 'cifar11' .*did you mean cifar10", "cifar11", data_dir=str(tmp_path))
    refuse("no data set 'digist' .*did you mean digits", "digist", data_dir=str(tmp_path))
    refuse("no data set 'qqqqq'.*list_builders", "qqqqq", data_dir=str(tmp_path))
    refuse("cannot be read as a name", "two words", data_dir=str(tmp_path))
    refuse("no config or version '/7' .*all, 0-4, 5-9", "digits/7", data_dir=str(tmp_path))
    refuse("no config or version ':9.9.9' .*1.0.0", "digits:9.9.9", data_dir=str(tmp_path))


def test_what_is_not_prepared_is_refused_with_the_command(tmp_path):
    for name in ("cifar10", "cifar10:3.0.2", "imagenet2012", "fgvc_aircraft"):
        command = f"run: python -m sop.data.prepare {name} --data_dir={tmp_path}$"
        refuse(f"{name}' is not prepared in .*{command}", name, data_dir=str(tmp_path))


def test_an_unknown_split_is_refused_with_those_there_are(tmp_path):
    refuse("no split 'validation'.* test, train", "digits", "validation", str(tmp_path))
    assert len(sources.open_source("digits", "train[:10%]+test", str(tmp_path))) == 144 + 360


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    refuse("cannot be prepared .*config.input.data_dir", "digits", data_dir=f"{tmp_path}/file")


def test_processes_that_prepare_at_once_all_succeed(tmp_path):
    program = (
        "from sop.data import sources;"
        f"print(len(sources.open_source('digits', 'test', {str(tmp_path)!r})))"
    )

    def run(_):
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(run, range(2)))
    assert [result.stdout for result in results] == ["360\n"] * 2, results
    assert not [path for path in tmp_path.rglob("*") if "incomplete" in path.name]


def test_tensorflow_is_not_imported(tmp_path):
    program = (
        "import sys; from sop.data import sources, prepare;"
        f"sources.open_source('digits', 'test', {str(tmp_path)!r})[0];"
        "sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_is_no_image_is_left_out_and_said(folder, tmp_path, capsys):
    cat = tmp_path / "own" / "train" / "cat"
    for name in ("notes.txt", "list.txt", "._a.jpg", ".hidden.jpg", "paper.pdf", "README"):
        (cat / name).write_text("no image")
    for name in ("c.webp", "d.GIF", "e.tiff", "f.bmp"):
        Image.new("RGB", (3, 3)).save(cat / name)
    source = sources.open_source(folder, "train")
    names = [source.describe(index).rpartition("/")[2] for index in range(len(source))]
    assert names == ["c.jpeg", "a.jpg", "b.PNG", "c.webp", "d.GIF", "e.tiff", "f.bmp", "d.png"]
    said = capsys.readouterr().err
    assert "6 of 14 files left out (2 .txt, 2 hidden, " in said and "1 .pdf" in said
    assert said.count("\n") == 1


def test_files_that_cannot_be_read_are_bad_images(folder, tmp_path):
    """Nor is a pipe waited for."""
    cat = tmp_path / "own" / "train" / "cat"
    (cat / "w.jpg").symlink_to(cat / "nowhere")
    (cat / "x.jpg").mkdir()
    os.mkfifo(cat / "y.jpg")
    (cat / "z.jpg").symlink_to("z.jpg")
    source = sources.open_source(folder, "train")
    (cat / "b.PNG").unlink()  # meanwhile
    for index in range(2, 7):
        with pytest.raises(BadImageError, match=r"cannot be read|no file"):
            source[index]


def test_identity_is_that_of_the_data_not_of_their_place(folder, tmp_path):
    def identity(path=tmp_path / "own"):
        return sources.open_source(f"folder:{path}", "train").identity

    before = identity()
    assert before["examples"] == 4 and before["classes"] == ["ant", "cat", "dog"]
    copy = shutil.copytree(tmp_path / "own", tmp_path / "copy")
    assert identity(copy) == before
    (copy / "train" / "cat" / "b.PNG").write_bytes(b"another size")
    assert {k for k, v in identity(copy).items() if v != before[k]} == {"files"}
    (copy / "train" / "cat" / "b.PNG").rename(copy / "train" / "cat" / "e.PNG")
    assert identity(copy)["files"] != before["files"]
    for split in ("train", "test"):
        (copy / split / "ant").rename(copy / split / "bee")
    assert identity(copy)["classes"] == ["bee", "cat", "dog"]


def test_identity_of_a_prepared_data_set(tmp_path):
    first, second = (
        sources.open_source("digits", "train", str(tmp_path / name)).identity for name in "ab"
    )
    assert first == second and first["examples"] == 1437
    test = sources.open_source("digits", "test", str(tmp_path / "a")).identity
    part = sources.open_source("digits", "train[:50%]", str(tmp_path / "a")).identity
    assert len({each["split"] for each in (first, test, part)}) == 3
    assert part["examples"] < first["examples"]


@pytest.mark.parametrize("way", ["empty", "noise", "cut", "folder", "gone"])
@pytest.mark.parametrize("name", ["features.json", "dataset_info.json", "*.array_record*"])
def test_a_damaged_data_set_is_refused_with_the_remedy(tmp_path, name, way):
    sources.open_source("digits", "train", str(tmp_path))
    for file in tmp_path.rglob(name):
        data = file.read_bytes()
        file.unlink()
        if way == "folder":
            file.mkdir()
        elif way != "gone":
            bad = {"empty": b"", "noise": b"\x80\xff" * 500, "cut": data[: len(data) // 2]}
            file.write_bytes(bad[way])
    with pytest.raises(UsageError, match=r"sop\.data\.prepare digits|is not prepared") as refusal:
        source = sources.open_source("digits", "train", str(tmp_path))
        for index in range(len(source)):
            source[index]
    assert "\n" not in str(refusal.value)
