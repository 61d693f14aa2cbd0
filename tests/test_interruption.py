"""Signals are answered at once, in every phase of a command, and leave no traceback."""

import signal
import subprocess
import sys
import time

import pytest

from tests.launch import ROOT, environment, finish, launch

# A main thread in compiled code, where no handler of Python's is called; it lets others run.
COMPUTE = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"

COMMAND = """
import os, signal, sys, time
from sop.command import run
from sop.interruption import Interruption, Unwinding, say

def main(arguments):
    {}

run(main)
"""

POSTPONED = """
    class Postponed(Interruption):
        def first(self, number):
            say("Noted.")

    with Postponed():
        print("ready", flush=True)
        {}
    print("Saved.")
"""


def interrupt(code, *numbers):
    """Runs `code`, sends each signal when another line has come; (status, lines, seconds)."""
    process = launch("-c", code)
    lines = []
    started = time.monotonic()
    for number in numbers:
        lines.append(process.stdout.readline().strip())
        time.sleep(0.1)
        started = time.monotonic()
        process.send_signal(number)
    [rest] = finish([process], timeout=60)
    return process.returncode, [*lines, *rest.splitlines()], time.monotonic() - started


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_has_nothing_to_save_even_in_compiled_code(number):
    code, lines, seconds = interrupt(
        COMMAND.format(f"print('ready', flush=True); {COMPUTE}"), number
    )
    assert (code, seconds < 10) == (128 + number, True)
    assert lines == ["ready", f"Stopped by {number.name}: nothing to save."]


def test_a_second_signal_ends_at_once_even_in_compiled_code():
    code, lines, seconds = interrupt(
        COMMAND.format(POSTPONED.format(COMPUTE)), signal.SIGINT, signal.SIGTERM
    )
    assert (code, seconds < 10) == (128 + signal.SIGTERM, True)
    assert lines == ["ready", "Noted."]


def test_a_first_signal_interrupts_nothing_that_has_something_to_save():
    wait = "end = time.monotonic() + 1\n        while time.monotonic() < end: time.sleep(0.01)"
    code, lines, _ = interrupt(COMMAND.format(POSTPONED.format(wait)), signal.SIGINT)
    assert (code, lines) == (0, ["ready", "Noted.", "Saved."])


def test_an_event_loop_that_takes_the_pipe_hides_no_signal():
    loop = """
        import asyncio, uvloop
        async def interrupt():
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.2)
        loop = uvloop.new_event_loop()
        loop.run_until_complete(interrupt())
        time.sleep(0.2)"""
    pytest.importorskip("uvloop")
    code, lines, _ = interrupt(COMMAND.format(POSTPONED.format(loop)))
    assert (code, lines) == (0, ["ready", "Noted.", "Saved."])


def test_what_is_half_made_is_removed():
    body = """
    with Unwinding():
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("removed", flush=True)
    """
    code, lines, _ = interrupt(COMMAND.format(body), signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert lines == ["ready", "Stopped by SIGTERM: removing what is incomplete.", "removed"]


def test_a_signal_while_the_process_ends_changes_nothing():
    body = """
    import atexit, threading
    threading.Thread(target=time.sleep, args=(0.5,)).start()
    print("ready", flush=True)
    """
    code, lines, _ = interrupt(COMMAND.format(body), signal.SIGINT)
    assert (code, lines) in (
        (0, ["ready"]),
        (130, ["ready", "Stopped by SIGINT: nothing to save."]),
    )


@pytest.mark.parametrize(
    "command",
    [
        ("main.py", "--workdir=run"),
        ("-m", "sop.data.prepare", "digits"),
        ("-m", "sop.torch_weights", "weights.pth", "--workdir=run"),
    ],
    ids=lambda command: command[-2],
)
def test_a_signal_while_a_command_is_imported(command, tmp_path):
    """A stand-in for the first large module that each imports is interrupted."""
    interrupted = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"
    for name in ("ml_collections", "jax", "tensorflow_datasets"):
        (tmp_path / f"{name}.py").write_text(interrupted)
    end = subprocess.run(
        [sys.executable, *command],
        env=environment(PYTHONPATH=f"{tmp_path}:{ROOT}"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (end.returncode, end.stdout) == (130, "")
    assert end.stderr == "Stopped by SIGINT: nothing to save.\n"
