"""Processes that come, do not come, refuse and die: one sentence in each, soon, and no stack."""

import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sop.errors import UsageError
from sop.training.partners import call_roll
from tests.launch import ROOT, finish, free_port


@pytest.fixture
def address():
    return f"127.0.0.1:{free_port()}"


def roll(address, *claims, timeout=1.5):
    """What each claim (process, of how many) gets: a refusal's sentence, or ''."""

    def one(claim):
        try:
            call_roll(address, *claim, timeout)
        except UsageError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(claims)) as pool:
        return list(pool.map(one, claims))


def test_all_come(address):
    assert roll(address, (2, 3), (0, 3), (1, 3)) == ["", "", ""]


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ([(0, 2)], ["Process 0 has waited 1.5 s for process 1 of 2"]),
        ([(1, 2)], ["Process 1 has waited 1.5 s for process 0 at 127"]),
        ([(0, 4), (2, 4)], ["for process 1, 3 of 4"] * 2),
        ([(0, 3), (1, 3), (1, 3)], ["Two processes say that they are process 1"] * 2),
        ([(0, 2), (1, 3)], ["Process 0 was told of 2 processes, process 1 of 3"] * 2),
    ],
)
def test_who_does_not_come_or_contradicts_is_named(address, claims, said):
    begun = time.monotonic()
    found = roll(address, *claims)
    assert time.monotonic() - begun < 8
    for sentence, part in zip(sorted(found, key=len)[-len(said) :], said, strict=True):
        assert part in sentence and "\n" not in sentence
    assert all(found)


def test_a_second_process_0_is_refused(address):
    host, _, port = address.rpartition(":")
    with socket.create_server((host, int(port))), pytest.raises(UsageError, match="is taken"):
        call_roll(address, 0, 2, 1)


def test_strangers_are_not_counted(address):
    """Whoever scans the port, or speaks another language."""
    host, _, port = address.rpartition(":")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(roll, address, (0, 2), timeout=3)
        for noise in (b"", b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"process": 7}\n'):
            for _ in range(50):
                try:
                    with socket.create_connection((host, int(port)), 1) as link:
                        link.sendall(noise)
                    break
                except OSError:
                    time.sleep(0.05)
        assert roll(address, (1, 2)) == [""]
        assert waiting.result() == [""]


PROGRAM = """
import sys, time
from sop.errors import UsageError
from sop.training.partners import call_roll, ends_told
process, processes = int(sys.argv[2]), int(sys.argv[3])
partners = call_roll(sys.argv[1], process, processes, 20)
print("here", flush=True)
with ends_told(partners):
    if sys.argv[4] == "refuse" and process == 1:
        raise UsageError("The image z.jpg cannot be decoded.")
    time.sleep(0 if sys.argv[4] == "end" else 60)
"""


def start(address, processes, what):
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(index), str(processes), what],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for index in range(processes)
    ]


@pytest.mark.parametrize("victim", [0, 2])
def test_a_death_ends_all_with_a_sentence(address, victim):
    processes = start(address, 3, "wait")
    for process in processes:
        assert process.stdout.readline() == "here\n"
    processes[victim].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    finish(processes, 30)
    assert time.monotonic() - begun < 10
    for index, process in enumerate(processes):
        assert process.returncode == (-9 if index == victim else 1)


def test_the_refusal_of_one_process_is_everybodys(address):
    processes = start(address, 3, "refuse")
    said = [process.communicate(timeout=30)[1] for process in processes]
    for index in (0, 2):
        assert said[index] == "Process 1 has ended: The image z.jpg cannot be decoded.\n"
        assert processes[index].returncode == 1


def test_an_end_of_all_is_no_death(address):
    processes = start(address, 3, "end")
    for process in processes:
        assert process.communicate(timeout=30) == ("here\n", "")
        assert process.returncode == 0
