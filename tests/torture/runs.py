"""One run of one process: killed, asked to stop, its files damaged, its disk full."""

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.kill_and_resume import unequal
from tests.torture.trial import RUN, Bench, End, Trial, expect, start, wait

# What each way leaves of a file's bytes.
WAYS = {
    "emptied": lambda data, rng: b"",
    "cut short": lambda data, rng: data[: rng.randrange(len(data) + 1)],
    "with one bit flipped": lambda data, rng: _flip(data, rng),
    "with its middle zeroed": lambda data, rng: _zero(data, rng),
    "replaced by noise": lambda data, rng: rng.randbytes(max(1, len(data))),
    "replaced by other JSON": lambda data, rng: rng.choice([b"[]", b"0", b"{}", b'"x"', b"null"]),
    "with bytes that are no UTF-8": lambda data, rng: data[: len(data) // 2] + b"\xff\xfe\x80",
    "with a line added": lambda data, rng: data + b"\x00\n{",
}
# A program that limits the size of files and then becomes `python ARGUMENTS…`.
_LIMITED = """
import os, resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
_BEYOND_BYTES = ("removed", "a folder", "a dangling link")


def kill(rng: random.Random, bench: Bench) -> Trial:
    """SIGKILL at moments of any phase, then to the end: as if nothing had happened."""
    moments = [rng.uniform(0.5, 12) for _ in range(rng.randint(1, 2))]
    path = bench.new_folder()

    def run() -> None:
        whole = bench.whole
        for moment in moments:
            _send_after(start([*RUN, f"--workdir={path}"]), [(moment, signal.SIGKILL)])
        _finish(path, whole)
        bench.clean(path)

    return Trial(f"kill -9 after {', '.join(f'{m:.1f}' for m in moments)} s", run)


def stop(rng: random.Random, bench: Bench) -> Trial:
    """SIGINT or SIGTERM, once or twice: an end in order, and on from there."""
    number = rng.choice([signal.SIGINT, signal.SIGTERM])
    # Before 0.3 s Python itself is starting.
    moments = [rng.uniform(0.3, 12)]
    if rng.random() < 0.3:
        moments.append(rng.uniform(0, 1))
    path = bench.new_folder()

    def run() -> None:
        whole = bench.whole
        process = start([*RUN, f"--workdir={path}"])
        end = _send_after(process, [(moment, number) for moment in moments])
        assert "KeyboardInterrupt" not in end.text, end.text[-1500:]
        expect(end, [0, 128 + number, *([-number] if len(moments) > 1 else [])])
        _finish(path, whole)
        bench.clean(path)

    when = " and ".join(f"{moment:.1f} s" for moment in moments)
    return Trial(f"{number.name} after {when}", run)


def damage(rng: random.Random, bench: Bench) -> Trial:
    """A file of a work folder damaged: the same numbers, or a sentence."""
    finished = rng.random() < 0.5
    mode = rng.choice(["train", "eval"])
    way = rng.choice([*WAYS, *_BEYOND_BYTES])
    number = rng.random()
    changes = random.Random(rng.random())
    state = "finished" if finished else "half-finished"

    def run() -> None:
        whole = bench.whole
        original = whole if finished else bench.half
        path = bench.copy(original)
        # By name without what differs between runs, so that a seed means the same again.
        files = sorted(
            (file for file in path.rglob("*") if file.is_file()),
            key=lambda file: re.sub(r"\d{6,}|[0-9a-f]{16,}", "", str(file)),
        )
        file = files[int(number * len(files))]
        _damage(file, way, changes)
        said = f"{file.relative_to(path)} of a {state} run {way}, then {mode}"
        end = wait(start([*RUN, f"--workdir={path}", f"--mode={mode}"]))
        try:
            expect(end, [0, 2])
            if end.code == 0 and mode == "train":
                _assert_equal(path, whole, end, file)
            elif end.code == 0:
                _assert_known_scores(original, whole, end)
        except AssertionError as error:
            raise AssertionError(f"{said}: {error}") from None
        bench.clean(path)

    return Trial(f"{mode} of a {state} run with a file {way}", run)


def full_disk(rng: random.Random, bench: Bench) -> Trial:
    """No file may grow beyond a size, or the disk is small: a sentence, and on from there."""
    limit = int(10 ** rng.uniform(3, 6.3))
    small_disk = rng.random() < 0.5 and os.geteuid() == 0
    path = bench.new_folder()

    def run() -> None:
        whole = bench.whole
        arguments = [*RUN, f"--workdir={path}"]
        if not small_disk:
            expect(wait(start(["-c", _LIMITED, str(limit), *arguments])), [0, 2])
            _finish(path, whole)
            return bench.clean(path)
        path.mkdir()
        size = f"size={limit * 4}"
        mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(path)]
        if subprocess.run(mount, capture_output=True).returncode:
            return None  # not allowed here
        try:
            expect(wait(start(arguments)), [0, 2])
            subprocess.run(["mount", "-o", "remount,size=100m", str(path)], check=True)
            _finish(path, whole)
        finally:
            subprocess.run(["umount", str(path)], check=True)
        return bench.clean(path)

    where = f"a disk of {limit * 4} bytes" if small_disk else f"files of at most {limit} bytes"
    return Trial(f"train with {where}, then without", run)


def _send_after(process: subprocess.Popen[str], signals: list[tuple[float, int]]) -> End:
    """Sends each signal so many seconds after the one before, and waits for the end."""
    for moment, number in signals:
        end = time.monotonic() + moment
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(number)
    return wait(process)


def _finish(path: Path, whole: Path) -> None:
    expect(wait(start([*RUN, f"--workdir={path}"])), [0])
    found = unequal(whole, path)
    assert not found, f"not as the run that nothing disturbed: {found[:3]}"


def _assert_equal(path: Path, whole: Path, end: End, file: Path) -> None:
    """The numbers are those of the undisturbed run; what is lost of its history is said."""
    found = unequal(whole, path)
    if file.name in end.text:
        found = [each for each in found if "history" not in each and "results" not in each]
    assert not found, f"not as the run that nothing disturbed: {found[:3]}: {end.text[-800:]}"


def _assert_known_scores(original: Path, whole: Path, end: End) -> None:
    """An evaluation printed what training had found at that step, the best unless it is damaged."""
    match = re.search(r"Evaluated step (\d+), .*?: (loss [^ ]+, top-1 [^ ]+), ", end.out)
    assert match, f"no result: {end.out[-500:]}"
    step, known = int(match[1]), _evaluations(whole).get(int(match[1]))
    if known is not None:
        expected = f"loss {known['loss']:.4f}, top-1 {known['top1']:.2%}"
        assert match[2] == expected, f"step {step} evaluated to {match[2]}, not {expected}"
    scores = {
        each: entry["top1"]
        for each, entry in _evaluations(original).items()
        if (original / "checkpoints" / str(each)).is_dir()
    }
    best = max(scores, key=lambda each: (scores[each], each))
    said = "damaged" in end.text or f"{best}" in end.err
    assert step == best or said, f"step {step} is not the best, {best}: {end.text[-500:]}"


def _evaluations(run: Path) -> dict[int, dict[str, Any]]:
    """Step → the entry of its evaluation."""
    entries = map(json.loads, (run / "history.jsonl").read_text().splitlines())
    return {entry["step"]: entry for entry in entries if entry["split"] == "eval"}


def _damage(file: Path, way: str, rng: random.Random) -> None:
    if way in WAYS:
        file.write_bytes(WAYS[way](file.read_bytes(), rng))
        return
    file.unlink()
    if way == "a folder":
        file.mkdir()
    elif way == "a dangling link":
        file.symlink_to(file.with_name("nowhere"))


def _flip(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return b"\x01"
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def _zero(data: bytes, rng: random.Random) -> bytes:
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:begin] + bytes(end - begin) + data[end:]
