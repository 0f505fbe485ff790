"""Processes found from the environment."""

import pytest

from evovit_jax import distributed

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
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, {}),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, {}),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a"}, {}),
    ],
)
def test_settings(environ, expected):
    assert distributed.settings(environ) == expected
