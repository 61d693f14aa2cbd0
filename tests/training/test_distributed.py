"""Several processes as one run: when they are started, and that they compute together."""

import pytest

from sop.errors import UsageError
from sop.training.distributed import detect, together
from tests.launch import run_together

SRUN = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
KUBERNETES = {
    "COORDINATOR_ADDRESS": "job-0.svc:8476",
    "NUM_PROCESSES": "4",
    "JOB_COMPLETION_INDEX": "3",
}
MPIRUN = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def flags(coordinator=None, num_processes=None, process_id=None):
    return {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # a shell inside `salloc -n 8`
        {"JOB_COMPLETION_INDEX": "2"},
        {"PROCESS_ID": "2"},
        {"NUM_PROCESSES": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    ],
)
def test_one_process_stays_alone(env):
    assert detect(flags(), env) is None


def test_kubernetes_style_environment():
    assert detect(flags(), KUBERNETES) == {
        "coordinator_address": "job-0.svc:8476",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }


def test_flags_come_before_the_environment():
    settings = detect(flags(coordinator="here:1", process_id=0), KUBERNETES)
    assert settings["coordinator_address"] == "here:1"
    assert (settings["num_processes"], settings["process_id"]) == (4, 0)


def test_slurm_step_of_several_tasks():
    settings = detect(flags(), SRUN)
    assert settings == {
        "num_processes": 8,
        "process_id": 5,
        "cluster_detection_method": "slurm",
    }


def test_slurm_task_alone_on_its_node_takes_all_gpus():
    env = {**SRUN, "SLURM_STEP_NUM_TASKS": "2", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert detect(flags(), env)["local_device_ids"] == [0, 1, 2, 3]
    del env["CUDA_VISIBLE_DEVICES"]
    assert detect(flags(), {**env, "SLURM_GPUS_ON_NODE": "2"})["local_device_ids"] == [0, 1]


def test_slurm_task_that_sees_one_gpu_takes_it():
    assert detect(flags(), {**SRUN, "CUDA_VISIBLE_DEVICES": "3"})["local_device_ids"] == [0]
    assert "local_device_ids" not in detect(flags(), {**SRUN, "CUDA_VISIBLE_DEVICES": "0,1,2,3"})


def test_mpirun():
    assert detect(flags(), {**MPIRUN, "OMPI_MCA_orte_hnp_uri": "1.0;tcp://h:1"}) == {
        "num_processes": 2,
        "process_id": 1,
        "cluster_detection_method": "ompi",
    }
    settings = detect(flags(coordinator="h:1"), MPIRUN)
    assert settings["local_device_ids"] == [1]
    assert settings["cluster_detection_method"] == "deactivate"
    with pytest.raises(UsageError, match=r"--coordinator=HOST:PORT"):
        detect(flags(), MPIRUN)


@pytest.mark.parametrize(
    ("given", "env", "sentence"),
    [
        (flags(coordinator="h:1"), {}, r"--num_processes .* and --process_id"),
        (flags(coordinator="h:1", num_processes=2), {}, r"needs --process_id"),
        (flags(process_id=1), {}, r"--process_id needs --coordinator"),
        (flags(), {"NUM_PROCESSES": "2", "PROCESS_ID": "0"}, r"needs --coordinator"),
        (flags("h", 2, 0), {}, r"'h' is not HOST:PORT"),
        (flags("127.0.0.1:abc", 2, 0), {}, r"'127\.0\.0\.1:abc' is not HOST:PORT"),
        (flags("h:99999", 2, 0), {}, r"port from 1 to 65535"),
        (flags(":8476", 2, 0), {}, r"':8476' is not HOST:PORT"),
        (flags("h:1", 2, 2), {}, r"Process 2 is not among the 2"),
        (flags(), {**KUBERNETES, "NUM_PROCESSES": "four"}, r"NUM_PROCESSES='four' must be a whole"),
    ],
)
def test_partial_or_contradictory_settings_are_refused(given, env, sentence):
    with pytest.raises(UsageError, match=sentence):
        detect(given, env)


def test_what_a_single_process_refuses_is_passed_on():
    def refuse():
        raise UsageError("no")

    with pytest.raises(UsageError, match=r"^no$"):
        together(refuse)


PROGRAM = """
import os, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from sop.errors import UsageError
from sop.training import distributed, workdir

distributed.initialize()
mesh = Mesh(np.array(jax.devices()), ("batch",))
mine = np.arange(4.0) + 4 * jax.process_index()
whole = jax.make_array_from_process_local_data(NamedSharding(mesh, P("batch")), mine)
add = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, "batch"), mesh=mesh,
                            in_specs=P("batch"), out_specs=P()))
print("sum", float(add(whole)[0]), "devices", jax.device_count(), jax.local_device_count())
def refuse():
    if jax.process_index() == 1:
        raise UsageError("Folder ä is in use.")
def try_to(action):
    try:
        action()
    except UsageError as error:
        print("refused:", error)
try_to(lambda: distributed.together(refuse))
token = distributed.shared_token()
try_to(lambda: distributed.refuse_differences("tokens", {"token": token}))
facts = {"seed": jax.process_index(), "rate": 0.1}
try_to(lambda: distributed.refuse_differences("configs", facts))
folder = f"{sys.argv[1]}/{jax.process_index()}"
os.makedirs(folder)
if jax.process_index() == 0:
    open(f"{folder}/.lock", "w").write(token)
try_to(lambda: distributed.together(lambda: workdir.refuse_another_folder(folder, token, 0.5)))
"""


def test_two_processes_of_four_devices_add_up_and_agree(tmp_path):
    arguments = ("-c", PROGRAM, str(tmp_path))
    for code, output in run_together(*arguments, processes=2, devices=4, timeout=120):
        assert code == 0, output
        assert "sum 28.0 devices 8 4" in output
        refused = [line for line in output.splitlines() if line.startswith("refused:")]
        assert refused[0] == "refused: Folder ä is in use."
        assert "different configs (seed is 0 and 1): start all processes alike" in refused[1]
        assert f"{tmp_path}/1 on " in refused[2] and "is not that of process 0" in refused[2]
        assert len(refused) == 3
