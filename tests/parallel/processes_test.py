"""Processes found from the environment."""

import pytest

from evovit_jax.parallel import processes

ADDRESS = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4"}
JOINED = {"coordinator_address": "10.0.0.1:1234", "num_processes": 4, "process_id": 2}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        (ADDRESS | {"JAX_PROCESS_ID": "2"}, JOINED),
        (ADDRESS | {"JOB_COMPLETION_INDEX": "2"}, JOINED),
        (ADDRESS, {}),
        (ADDRESS | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        ({"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "1"}, None),
        ({"SLURM_STEP_NODELIST": "a[1-2]", "SLURM_NTASKS": "8"}, {}),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # a batch script without srun
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, {}),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a"}, {}),
    ],
)
def test_settings(environ, expected):
    assert processes.settings(environ) == expected


def test_the_only_task_of_a_slurm_node_has_all_its_gpus():
    step = {"SLURM_STEP_NODELIST": "a[1-2]", "SLURM_NTASKS": "2", "SLURM_GPUS_ON_NODE": "4"}
    one = step | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    assert processes.settings(one) == {"local_device_ids": [0, 1, 2, 3]}
    many = step | {"SLURM_NTASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
    assert processes.settings(many) == {}


def test_a_tpu_vm_asks_its_metadata_server():
    assert processes.settings({}, tpu_vm=True) == {}
    assert processes.settings({"TPU_SKIP_MDS_QUERY": "1"}, tpu_vm=True) is None
    assert processes.settings({"TPU_WORKER_HOSTNAMES": "localhost"}, tpu_vm=True) is None


def test_one_process_joins_nobody(monkeypatch):
    monkeypatch.setattr(processes.os, "environ", {})
    joined = []
    monkeypatch.setattr(
        processes.jax.distributed, "initialize", lambda **settings: joined.append(settings)
    )
    with processes.joined():
        assert joined == []


def test_a_process_that_cannot_join_says_so(monkeypatch, capsys):
    def fail(**settings):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody there\nmore")

    monkeypatch.setattr(processes.os, "environ", ADDRESS | {"JAX_PROCESS_ID": "2"})
    monkeypatch.setattr(processes.jax.distributed, "initialize", fail)
    with pytest.raises(SystemExit) as stopped, processes.joined():
        pass
    assert stopped.value.code == 75
    expected = "error: this process could not join the others: DEADLINE_EXCEEDED: nobody there\n"
    assert capsys.readouterr().err == expected
