"""Many processes as one run: `jax.distributed`, started when flags or the environment say so."""

import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sop.errors import UsageError
from sop.training.partners import Partners, call_roll

# Environment variables read for each setting, first match wins.
_VARIABLES = {
    "coordinator_address": ("JAX_COORDINATOR_ADDRESS", "COORDINATOR_ADDRESS"),
    "num_processes": ("JAX_NUM_PROCESSES", "NUM_PROCESSES"),
    "process_id": ("JAX_PROCESS_ID", "PROCESS_ID", "JOB_COMPLETION_INDEX"),
}
# Seconds that a process which ends waits for the others to do so: one that stops alone, at an image
# that it cannot decode, must not keep the run waiting for minutes.
_GOODBYE = 15
_FLAGS = {
    "coordinator_address": "--coordinator",
    "num_processes": "--num_processes",
    "process_id": "--process_id",
}


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: float = 300,
) -> Partners | None:
    """Joins this process to the others of its run; call it before anything touches a device.

    In order: the arguments (launch flags) or, for each one left out, its environment variables
    (`COORDINATOR_ADDRESS`, `NUM_PROCESSES`, `PROCESS_ID` or `JOB_COMPLETION_INDEX`, the first two
    and `PROCESS_ID` also with the prefix `JAX_`); else a Slurm step or an `mpirun` of several
    tasks; else a TPU pod. Where none of them speaks of several processes, this one runs alone.

    Args:
      coordinator: 'HOST:PORT' of process 0, the same in every process.
      num_processes: how many there are.
      process_id: which this is, from 0.
      timeout: seconds to wait for the others.
    Returns:
      The others, to be told how this process ends; None where it is alone, or JAX finds the others
      by means of Slurm or a TPU pod, whose launchers end all processes where one has failed.
    Raises:
      UsageError: some of the three are given but not all, or they contradict each other, or not
        all processes came in time.
    """
    given = {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    settings = detect(given, os.environ)
    if settings is None:
        return None
    partners = None
    if (address := settings.get("coordinator_address")) is not None:
        partners = call_roll(address, settings["process_id"], settings["num_processes"], timeout)
    waiting = {"initialization_timeout": math.ceil(timeout), "shutdown_timeout_seconds": _GOODBYE}
    jax.distributed.initialize(**settings, **waiting)
    return partners


def detect(given: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments for `jax.distributed.initialize`, or None where this process is the only one."""
    explicit = {key: _setting(key, given.get(key), env) for key in _VARIABLES}
    cluster = _slurm(env) or _open_mpi(env) or {}
    if explicit["coordinator_address"] is None and explicit["num_processes"] is None:
        if given.get("process_id") is not None and not cluster:
            raise UsageError("--process_id needs --coordinator=HOST:PORT and --num_processes too.")
        if cluster.get("cluster_detection_method") == "deactivate":
            raise UsageError(
                f"mpirun started {cluster['num_processes']} processes but does not say where the "
                "first one is: add --coordinator=HOST:PORT."
            )
        if cluster:
            return cluster
        return {} if _on_tpu_pod(env) else None

    settings = {k: v if v is not None else cluster.get(k) for k, v in explicit.items()}
    if settings["num_processes"] == 1 and settings["process_id"] in (None, 0):
        return None
    missing = [key for key, value in settings.items() if value is None]
    if missing:
        known = ", ".join(f"{_FLAGS[k]}={v}" for k, v in settings.items() if v is not None)
        remedy = " and ".join(f"{_FLAGS[k]} (or {_VARIABLES[k][1]})" for k in missing)
        raise UsageError(f"A run of several processes ({known}) also needs {remedy}.")
    host, _, port = settings["coordinator_address"].rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise UsageError(
            f"Coordinator {settings['coordinator_address']!r} is not HOST:PORT with a port from 1 "
            "to 65535."
        )
    if not 0 <= settings["process_id"] < settings["num_processes"]:
        raise UsageError(
            f"Process {settings['process_id']} is not among the {settings['num_processes']} "
            "processes: count --process_id from 0 to --num_processes - 1."
        )
    return {"cluster_detection_method": "deactivate", **cluster, **settings}


def together(action: Callable[[], None]) -> None:
    """Runs `action` in every process, and waits for all; the refusal of one is everybody's.

    Raises:
      UsageError: in every process, if `action` raised one in any.
    """
    if jax.process_count() == 1:
        action()
        return
    message = ""
    try:
        action()
    except UsageError as error:
        message = str(error)
    for heard in _gather_texts(message):
        if heard:
            raise UsageError(heard)


def refuse_differences(what: str, facts: Mapping[str, Any]) -> None:
    """Refuses to go on, in every process, unless all of them have the same facts.

    Args:
      what: that the facts are about, as in 'The processes have different `what`'.
      facts: JSON-able.
    Raises:
      UsageError: naming up to three facts that differ, and the process.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(facts, sort_keys=True, default=str)
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    digests = np.asarray(multihost_utils.process_allgather(digest))
    if (digests == digests[0]).all():
        return
    first, *others = map(json.loads, _gather_texts(text))
    for index, other in enumerate(others, start=1):
        keys = [k for k in sorted(first.keys() | other.keys()) if first.get(k) != other.get(k)]
        if keys:
            named = (f"{k} is {first.get(k)!r} and {other.get(k)!r}" for k in keys[:3])
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise UsageError(
                f"Process 0 and process {index} have different {what} ({'; '.join(named)}{more}): "
                "start all processes alike."
            )


def shared_token() -> str:
    """A random text, the same in every process."""
    drawn = np.frombuffer(os.urandom(8), np.uint8)
    if jax.process_count() > 1:
        drawn = np.asarray(multihost_utils.broadcast_one_to_all(drawn)).astype(np.uint8)
    return drawn.tobytes().hex()


def _gather_texts(text: str) -> list[str]:
    """The text of each process."""
    data = text.encode()
    lengths = np.asarray(multihost_utils.process_allgather(np.array(len(data)))).ravel()
    letters = np.frombuffer(data.ljust(int(lengths.max()) or 1), np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(letters)).astype(np.uint8)
    rows = rows.reshape(len(lengths), -1)
    pairs = zip(rows, lengths.tolist(), strict=True)
    return [row.tobytes()[:length].decode() for row, length in pairs]


def _setting(key: str, flag: Any, env: Mapping[str, str]) -> Any:
    if flag is not None:
        return flag
    for name in _VARIABLES[key]:
        if value := env.get(name, ""):
            if key == "coordinator_address":
                return value
            try:
                return int(value)
            except ValueError:
                raise UsageError(f"{name}={value!r} must be a whole number.") from None
    return None


def _slurm(env: Mapping[str, str]) -> dict[str, Any] | None:
    """What `srun` says, where it started several tasks.

    A shell or a batch script inside an allocation is not one of the allocation's tasks:
    SLURM_NTASKS there counts tasks that nobody has started, SLURM_STEP_NUM_TASKS those that were.
    """
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1")))
    if tasks < 2 or not all(name in env for name in names):
        return None
    return {
        "num_processes": tasks,
        "process_id": int(env["SLURM_PROCID"]),
        "cluster_detection_method": "slurm",
        **_local_devices(env, alone=int(env.get("SLURM_STEP_NUM_NODES", "1")) == tasks),
    }


def _open_mpi(env: Mapping[str, str]) -> dict[str, Any] | None:
    """What `mpirun` says, where it started several processes."""
    size = int(env.get("OMPI_COMM_WORLD_SIZE", "1"))
    if size < 2:
        return None
    # From Open MPI 5 on, JAX does not recognise it.
    method = "ompi" if "OMPI_MCA_orte_hnp_uri" in env else "deactivate"
    settings = {
        "num_processes": size,
        "process_id": int(env["OMPI_COMM_WORLD_RANK"]),
        "cluster_detection_method": method,
        **_local_devices(env, alone=env.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"),
    }
    if method == "deactivate":
        settings.setdefault("local_device_ids", [int(env["OMPI_COMM_WORLD_LOCAL_RANK"])])
    return settings


def _local_devices(env: Mapping[str, str], alone: bool) -> dict[str, list[int]]:
    """The GPUs of this process, where they are not the n-th one for the n-th process of a node.

    That is what JAX gives it under Slurm and Open MPI. But a process `alone` on its node takes all
    GPUs there, and one that the launcher shows a single GPU takes that.
    """
    visible = [gpu for gpu in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    count = len(visible) or int(env.get("SLURM_GPUS_ON_NODE", "0"))
    return {"local_device_ids": list(range(count))} if count and (alone or count == 1) else {}


def _on_tpu_pod(env: Mapping[str, str]) -> bool:
    """Whether this is a TPU host, which JAX can ask about its pod (of one host or of many)."""
    if importlib.util.find_spec("libtpu") is None or env.get("JAX_PLATFORMS", "tpu") == "cpu":
        return False
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES", "")
    # JAX sets TPU_SKIP_MDS_QUERY where it sees no TPU chip.
    return len(hosts.split(",")) > 1 or "TPU_SKIP_MDS_QUERY" not in env
