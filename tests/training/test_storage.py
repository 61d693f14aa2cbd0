"""Paths in a bucket, beside those on a disk."""

import importlib.util

import pytest

from sop.errors import UsageError
from sop.training.storage import Lines, copy_files, entries, locate, set_aside, write_atomically
from tests.bucket import Refused


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path, storage):
    """An empty one of either."""
    return tmp_path if request.param == "disk" else locate(f"gs://stand-in/{tmp_path.name}")


def test_files_are_written_found_and_set_aside(folder):
    assert entries(folder / "none") == []
    write_atomically(folder / "a", "one")
    write_atomically(folder / "a", b"two")
    assert (folder / "a").read_text() == "two"
    (folder / "source" / "deep").mkdir(parents=True)
    write_atomically(folder / "source" / "deep" / "b", "b")
    set_aside(folder / "source")
    (folder / "source" / "deep").mkdir(parents=True)
    write_atomically(folder / "source" / "deep" / "b", "c")
    assert set_aside(folder / "source").name == "damaged-source.2"
    names = [path.name for path in entries(folder)]
    assert names == ["a", "damaged-source", "damaged-source.2"]
    assert (folder / "damaged-source" / "deep" / "b").read_text() == "b"


def test_a_folder_of_the_disk_is_copied(folder, tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    (source / "deep").mkdir()
    (source / "deep" / "b").write_bytes(b"b" * 10**7)  # sent in parts
    copy_files(source, folder / "copy")
    assert (folder / "copy" / "deep" / "b").read_bytes() == b"b" * 10**7


def test_a_file_grows_by_lines(folder, monkeypatch):
    lines = Lines(folder / "lines")
    lines.begin(["1\n", "2\n"])
    lines.append("3\n")
    lines.flush()
    assert (folder / "lines").read_text() == "1\n2\n3\n"
    assert not lines.flush()
    monkeypatch.setattr("sop.training.storage._EVERY", 0.0)
    assert lines.append("4\n")
    assert (folder / "lines").read_text() == "1\n2\n3\n4\n"


def test_an_object_is_written_as_rarely_as_said(storage):
    lines = Lines(locate("gs://stand-in/rarely"))
    lines.begin(["1\n"])
    assert not lines.append("2\n")
    assert storage.buckets["stand-in"]["rarely"][1] == b"1\n"


@pytest.mark.parametrize("path", ["s3://stand-in/run", "gs://", "gs:///run"])
def test_other_services_are_refused(path):
    with pytest.raises(UsageError, match="names no folder"):
        locate(path)


def test_a_bucket_that_cannot_be_used_is_refused_once(storage, monkeypatch):
    with pytest.raises(UsageError, match=r"gs://no-such cannot be reached \(NotFound"):
        locate("gs://no-such/run")

    def forbid(method, path):
        raise Refused(403)

    monkeypatch.setattr(storage, "fail", forbid)
    with pytest.raises(UsageError, match=r"gs://another cannot be reached \(Forbidden"):
        locate("gs://another/run")


def test_a_missing_package_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gcsfs" else find(name)
    )
    with pytest.raises(UsageError, match=r"gcsfs: pip install .*\[cloud\]"):
        locate("gs://not-asked-yet/run")
