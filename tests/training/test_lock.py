"""The lease of a folder in a bucket. What keeps a second run out of a disk is in test_workdir."""

import contextlib
import json
import subprocess
import sys
import threading
import time

import pytest

from sop.errors import UsageError
from sop.training import lock
from sop.training.lock import HeldError, Lease
from sop.training.storage import locate
from sop.training.workdir import WorkDir, refuse_another_folder
from tests.bucket import Refused
from tests.launch import environment

SECONDS = 0.8


@pytest.fixture
def folder(storage, request):
    return locate(f"gs://stand-in/{request.node.name}")


def content(folder):
    return json.loads((folder / ".lock").read_bytes())


def test_of_two_one_begins_and_the_other_hears_of_it(folder):
    with (
        contextlib.closing(Lease(folder, SECONDS)),
        pytest.raises(HeldError, match=r"process \d+ on .*, seen 20"),
    ):
        Lease(folder, SECONDS)
    assert not (folder / ".lock").exists()
    Lease(folder, SECONDS).close()


def test_all_begin_at_once_and_one_has_it(folder):
    got = []

    def begin():
        with contextlib.suppress(HeldError):
            got.append(Lease(folder, SECONDS))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [lease] = got
    lease.close()


def test_a_holder_that_is_cut_off_loses_the_lease_and_hears_of_it(folder, monkeypatch):
    monkeypatch.setattr(lock, "_machine", lambda: None)  # that nobody tells by their numbers
    lost, cut_off = threading.Event(), pytest.MonkeyPatch()
    first = Lease(folder, SECONDS, lost.set)

    def fail(replaced):
        raise ValueError("UNAVAILABLE")

    cut_off.setattr(first, "_write", fail)
    began = time.monotonic()
    second = Lease(folder, SECONDS)
    assert time.monotonic() - began >= SECONDS and not lost.is_set()
    cut_off.undo()
    assert lost.wait(5)
    first.close()
    with pytest.raises(HeldError):
        Lease(folder, SECONDS)
    second.close()


def test_a_process_of_this_machine_that_was_killed_is_not_waited_for(folder):
    program = (
        "import os, signal, sys\n"
        "from sop.training.lock import Lease\n"
        "from sop.training.storage import locate\n"
        "Lease(locate(sys.argv[1]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], env=environment(), check=False)
    assert content(folder)["holder"].startswith("process")
    began = time.monotonic()
    Lease(folder).close()
    assert time.monotonic() - began < 5


def test_an_answer_that_was_lost_loses_no_lease(folder):
    """The write was made, and is refused when it is repeated."""
    lost = threading.Event()
    lease = Lease(folder, SECONDS, lost.set)
    (folder / ".lock").write_bytes((folder / ".lock").read_bytes())  # another generation of it
    time.sleep(SECONDS)
    assert not lost.is_set()
    lease.close()
    assert not (folder / ".lock").exists()


def test_a_work_folder_in_a_bucket(folder):
    with WorkDir(folder) as workdir:
        workdir.sign("sesame")
        refuse_another_folder(folder, "sesame")
        with pytest.raises(UsageError, match="is not that of process 0"):
            refuse_another_folder(folder, "another", seconds=0)
        assert set(content(folder)) == {"holder", "process", "machine", "renewed", "key", "token"}


def test_a_work_folder_that_cannot_be_written(folder, storage, monkeypatch):
    def refuse(method, path):
        if "upload" in path:
            raise Refused(403)

    monkeypatch.setattr(storage, "fail", refuse)
    with pytest.raises(UsageError, match=r"cannot be written \(PERMISSION_DENIED"):
        WorkDir(folder)
