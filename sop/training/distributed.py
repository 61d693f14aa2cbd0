"""Many processes as one run: `jax.distributed`, started when flags or the environment say so."""

import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sop.errors import UsageError

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
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins this process to the others of its run; call it before anything touches a device.

    In order: the arguments (launch flags) or, for each one left out, its environment variables
    (`COORDINATOR_ADDRESS`, `NUM_PROCESSES`, `PROCESS_ID` or `JOB_COMPLETION_INDEX`, the first two
    and `PROCESS_ID` also with the prefix `JAX_`); else a Slurm step or an `mpirun` of several
    tasks; else a TPU pod. Where none of them speaks of several processes, this one runs alone.

    Args:
      coordinator: 'HOST:PORT' of process 0, the same in every process.
      num_processes: how many there are.
      process_id: which this is, from 0.
    Raises:
      UsageError: some of the three are given but not all, or they contradict each other, or the
        coordinator did not answer.
    """
    given = {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    settings = detect(given, os.environ)
    if settings is None:
        return
    try:
        jax.distributed.initialize(**settings, shutdown_timeout_seconds=_GOODBYE)
    except RuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        raise UsageError(
            f"The processes of this run did not find each other ({settings}): start all of them, "
            "and check that the coordinator's host and port can be reached."
        ) from error


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
    if ":" not in settings["coordinator_address"]:
        raise UsageError(
            f"Coordinator {settings['coordinator_address']!r} has no port: give it as HOST:PORT."
        )
    if not 0 <= settings["process_id"] < settings["num_processes"]:
        raise UsageError(
            f"Process {settings['process_id']} is not among the {settings['num_processes']} "
            "processes: count --process_id from 0 to --num_processes - 1."
        )
    return {"cluster_detection_method": "deactivate", **cluster, **settings}


def on_first_process(action: Callable[[], None]) -> None:
    """Runs `action` in process 0 alone, while the others wait; its refusal is everybody's.

    Without this the others would wait for the one that refused.

    Raises:
      UsageError: in every process, if `action` raised one.
    """
    message = ""
    if jax.process_index() == 0:
        try:
            action()
        except UsageError as error:
            if jax.process_count() == 1:
                raise
            message = str(error)
    if jax.process_count() > 1:
        letters = np.frombuffer(message.encode()[:4096].ljust(4096), np.uint8)
        heard = np.asarray(multihost_utils.broadcast_one_to_all(letters))
        message = heard.astype(np.uint8).tobytes().decode(errors="ignore").strip()
    if message:
        raise UsageError(message)


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
