"""Starts programs as users do: alone or as several processes of one run on this machine."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# XLA's older code generator on the CPU, in one thread, compiles small programs in a fifth to a
# third of the CPU time; and compiling takes most of the tests' time.
COMPILE_QUICKLY = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def xla_flags(devices: int) -> str:
    """For so many simulated CPU devices, on programs that take longer to compile than to run."""
    return f"--xla_force_host_platform_device_count={devices} {COMPILE_QUICKLY}"


def environment(devices: int = 1, **variables: str) -> dict[str, str]:
    """That of a process with so many simulated CPU devices, which finds `sop` and the tests."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(devices),
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        **variables,
    }


def launch(
    *arguments: str, devices: int = 1, cwd: Path = ROOT, **variables: str
) -> subprocess.Popen[str]:
    """Starts `python ARGUMENTS…`; stderr goes into stdout."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment(devices, **variables),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes: Sequence[subprocess.Popen[str]], timeout: float = 300) -> list[str]:
    """What each process printed, once all have ended; none is left running."""
    try:
        return [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def run(*arguments: str, devices: int = 1, timeout: float = 300, **variables: str):
    """`python ARGUMENTS…` to its end → (exit code, what it printed)."""
    process = launch(*arguments, devices=devices, **variables)
    [output] = finish([process], timeout)
    return process.returncode, output


def run_together(
    *arguments: str, processes: int = 2, devices: int = 4, timeout: float = 300, **variables: str
) -> list[tuple[int, str]]:
    """`python ARGUMENTS…` as several processes that find each other on 127.0.0.1.

    Returns:
      For each process (exit code, what it printed).
    """
    shared = {
        "COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "NUM_PROCESSES": str(processes),
        **variables,
    }
    started = [
        launch(*arguments, devices=devices, PROCESS_ID=str(index), **shared)
        for index in range(processes)
    ]
    outputs = finish(started, timeout)
    return [(p.returncode, output) for p, output in zip(started, outputs, strict=True)]


def free_port() -> int:
    """One of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


_FORKS = """
import importlib, json, os, sys
from sop.command import run
*_, main = map(importlib.import_module, sys.argv[3:])
for number, arguments in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    output = os.open(f"{sys.argv[2]}/{number}.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1), os.dup2(output, 2)
    sys.argv = [main.__file__, *arguments]
    code = 0
    try:
        run(main.main)
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        os.write(output, f"\\nexit {code or 0}".encode())
        os._exit(0)
"""


def run_often(
    commands: Sequence[Sequence[str]],
    folder: Path,
    modules: Sequence[str] = ("launch", "main"),
    devices: int = 1,
    **variables: str,
) -> list[tuple[int, str]]:
    """The last module's `main` with each command's arguments, in forks of one process.

    All modules are imported, once, and none of them may compute, as forks have no other threads.
    Returns what `run` does, for each.
    """
    code, output = run(
        "-c",
        _FORKS,
        json.dumps(list(map(list, commands))),
        str(folder),
        *modules,
        devices=devices,
        **variables,
    )
    assert code == 0, output
    ends = []
    for number in range(len(commands)):
        text, _, code = (folder / f"{number}.txt").read_text().rpartition("\nexit ")
        ends.append((int(code), text))
    return ends
