"""Processes found from the environment."""

import pytest

from evovit_jax.errors import UserError
from evovit_jax.parallel import processes, supervisor

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


class Told(supervisor.Child):
    """Without a parent."""

    def __init__(self):
        self.facts = {}

    def tell(self, **facts):
        self.facts |= facts


def test_a_process_that_cannot_join_says_so(monkeypatch, capsys):
    def fail(**settings):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody there\nmore")

    monkeypatch.setenv("EVOVIT_JOIN_SECONDS", "7")
    monkeypatch.setattr(processes.jax.distributed, "initialize", fail)
    told = Told()
    with pytest.raises(SystemExit) as stopped:
        processes.join(JOINED, 40, told)
    assert stopped.value.code == 75
    expected = "error: this process could not join the others: DEADLINE_EXCEEDED: nobody there\n"
    assert capsys.readouterr().err == expected
    assert told.facts["waits"] == "waited 7 s, EVOVIT_JOIN_SECONDS, at 10.0.0.1:1234"


def test_how_long_is_a_number_of_seconds(monkeypatch):
    given = []
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda **s: given.append(s))
    processes.join(JOINED, 40, Told())
    assert given == [JOINED | {"heartbeat_timeout_seconds": 40, "initialization_timeout": 120}]
    monkeypatch.setenv("EVOVIT_JOIN_SECONDS", "soon")
    with pytest.raises(UserError, match="EVOVIT_JOIN_SECONDS='soon' is no number of seconds"):
        processes.join(JOINED, 40, Told())


def test_the_parent_learns_who_the_processes_are():
    told = Told()
    processes.introduce(told)
    assert told.facts["process"] == 0
    assert told.facts["members"] == [
        f"process 0 of 1 (host {processes.socket.gethostname()}, pid {processes.os.getpid()})"
    ]


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (ADDRESS | {"JAX_NUM_PROCESSES": "x"}, "JAX_NUM_PROCESSES='x' is no whole number from 1"),
        (ADDRESS | {"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES='0' is no whole number from 1"),
        (ADDRESS | {"JAX_NUM_PROCESSES": "9" * 23}, "is no whole number from 1"),
        (ADDRESS | {"JAX_PROCESS_ID": "7"}, "JAX_PROCESS_ID=7 of JAX_NUM_PROCESSES=4"),
        (ADDRESS | {"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID='-1' is no whole number from 0"),
        (ADDRESS | {"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID='' is no whole number from 0"),
        (ADDRESS | {"JOB_COMPLETION_INDEX": "4"}, "JOB_COMPLETION_INDEX=4 of JAX_NUM_PROCESSES=4"),
        ({"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "two"}, "SLURM_NTASKS='two'"),
        (
            {"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "2", "SLURM_GPUS_ON_NODE": "all"},
            "SLURM_GPUS_ON_NODE='all'",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "1.5"}, "OMPI_COMM_WORLD_SIZE='1.5'"),
    ],
)
def test_settings_that_are_none(environ, message):
    with pytest.raises(UserError, match=message):
        processes.settings(environ)
