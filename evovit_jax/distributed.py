"""Several processes: found from the environment, and joined before JAX looks for devices."""

import os
from collections.abc import Mapping

import jax

# Seconds after which a process that no longer answers is given up, and with it the run.
HEARTBEAT_TIMEOUT = 40


def settings(environ: Mapping[str, str]) -> dict[str, object] | None:
    """Arguments for `jax.distributed.initialize`, or None where this process is alone.

    - `JAX_COORDINATOR_ADDRESS` with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (or the index that
      Kubernetes gives the pods of an indexed Job or JobSet, `JOB_COMPLETION_INDEX`);
    - SLURM and Open MPI steps of several tasks;
    - TPU slices of several hosts (`TPU_WORKER_HOSTNAMES`, `TPU_PROCESS_ADDRESSES`), and several
      slices (`MEGASCALE_COORDINATOR_ADDRESS`).
    """
    if "JAX_COORDINATOR_ADDRESS" in environ:
        count = int(environ.get("JAX_NUM_PROCESSES", "1"))
        index = environ.get("JAX_PROCESS_ID", environ.get("JOB_COMPLETION_INDEX"))
        if count == 1 or index is None:
            return {} if index is None and count > 1 else None
        return {
            "coordinator_address": environ["JAX_COORDINATOR_ADDRESS"],
            "num_processes": count,
            "process_id": int(index),
        }
    slurm = "SLURM_PROCID" in environ and int(environ.get("SLURM_NTASKS", "1")) > 1
    mpi = int(environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    tpu = "," in hosts or "MEGASCALE_COORDINATOR_ADDRESS" in environ
    return {} if slurm or mpi or tpu else None


def initialize() -> None:
    """Joins the run's other processes, if the environment says that there are any."""
    found = settings(os.environ)
    if found is not None:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT, **found)
