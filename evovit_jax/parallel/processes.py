"""Several processes: found from the environment, and joined before JAX looks for devices."""

import contextlib
import glob
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping

import jax

from evovit_jax.parallel.companion import PEER_DIED
from evovit_jax.parallel.watch import Watch

# Seconds after which JAX gives up a process that no longer answers, and with it the run.
HEARTBEAT_TIMEOUT = 40


def settings(environ: Mapping[str, str], *, tpu_vm: bool = False) -> dict[str, object] | None:
    """Arguments for `jax.distributed.initialize`, or None where this process is alone.

    - `JAX_COORDINATOR_ADDRESS` with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (or the index that
      Kubernetes gives the pods of an indexed Job or JobSet, `JOB_COMPLETION_INDEX`);
    - SLURM (`srun`) and Open MPI steps of several tasks;
    - TPU slices of several hosts (`TPU_WORKER_HOSTNAMES`, `TPU_PROCESS_ADDRESSES`), and several
      slices (`MEGASCALE_COORDINATOR_ADDRESS`);
    - a Cloud TPU VM, whose metadata server knows the other hosts; JAX asks it.

    Args:
      environ: the environment.
      tpu_vm: whether this host has TPU chips.
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
    if _is_slurm_step(environ):
        return _slurm_devices(environ)
    if int(environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return {}
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in hosts or "MEGASCALE_COORDINATOR_ADDRESS" in environ:
        return {}
    return {} if tpu_vm and not hosts and "TPU_SKIP_MDS_QUERY" not in environ else None


def _is_slurm_step(environ: Mapping[str, str]) -> bool:
    # `srun` alone sets the node list of the step; without it a batch script is one process.
    return "SLURM_STEP_NODELIST" in environ and int(environ.get("SLURM_NTASKS", "1")) > 1


def _slurm_devices(environ: Mapping[str, str]) -> dict[str, object]:
    """Which of a node's GPUs are a task's: JAX gives each task one, also where it is alone."""
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", ""))
    gpus = int(environ.get("SLURM_GPUS_ON_NODE", "0"))
    if gpus > 1 and tasks.partition("(")[0] == "1":
        return {"local_device_ids": list(range(gpus))}
    return {}


def on_tpu_vm() -> bool:
    """Whether this host has TPU chips and the library for them."""
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the run's other processes, if the environment says that there are any.

    While the context lasts, a process that dies or fails ends the others within a minute, with a
    line that says which it was, and the status `PEER_DIED`.
    """
    found = settings(os.environ, tpu_vm=on_tpu_vm())
    if found is None:
        yield
        return
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT, **found)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        print(f"error: this process could not join the others: {reason}", file=sys.stderr)
        sys.exit(PEER_DIED)
    with Watch():
        yield
