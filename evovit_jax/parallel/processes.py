"""Several processes: found from the environment, and joined before JAX looks for devices."""

import contextlib
import glob
import importlib.util
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping

import jax

from evovit_jax.errors import UserError, first_line
from evovit_jax.parallel import agreement, supervisor

# Seconds after which JAX gives up a process that no longer answers, and with it the run; and that
# it waits for all processes at the start. EVOVIT_HEARTBEAT_SECONDS and EVOVIT_JOIN_SECONDS say
# otherwise.
HEARTBEAT, JOIN = 40, 120


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
        count = _whole(environ, "JAX_NUM_PROCESSES", "1", least=1)
        name = "JAX_PROCESS_ID" if "JAX_PROCESS_ID" in environ else "JOB_COMPLETION_INDEX"
        if count == 1 or name not in environ:
            return {} if name not in environ and count > 1 else None
        index = _whole(environ, name)
        if index >= count:
            raise UserError(f"{name}={index} of JAX_NUM_PROCESSES={count}: the first is 0")
        return {
            "coordinator_address": environ["JAX_COORDINATOR_ADDRESS"],
            "num_processes": count,
            "process_id": index,
        }
    if _is_slurm_step(environ):
        return _slurm_devices(environ)
    if _whole(environ, "OMPI_COMM_WORLD_SIZE", "1") > 1:
        return {}
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in hosts or "MEGASCALE_COORDINATOR_ADDRESS" in environ:
        return {}
    return {} if tpu_vm and not hosts and "TPU_SKIP_MDS_QUERY" not in environ else None


def _is_slurm_step(environ: Mapping[str, str]) -> bool:
    # `srun` alone sets the node list of the step; without it a batch script is one process.
    return "SLURM_STEP_NODELIST" in environ and _whole(environ, "SLURM_NTASKS", "1") > 1


def _slurm_devices(environ: Mapping[str, str]) -> dict[str, object]:
    """Which of a node's GPUs are a task's: JAX gives each task one, also where it is alone."""
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", ""))
    gpus = _whole(environ, "SLURM_GPUS_ON_NODE", "0")
    if gpus > 1 and tasks.partition("(")[0] == "1":
        return {"local_device_ids": list(range(gpus))}
    return {}


def on_tpu_vm() -> bool:
    """Whether this host has TPU chips and the library for them."""
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


@contextlib.contextmanager
def joined() -> Iterator[supervisor.Child | None]:
    """Joins the run's other processes, if the environment says that there are any.

    While the context lasts, a process that dies ends the others within a minute, with a line that
    says which it was, and the status `supervisor.OTHER_DIED`. So does one that never comes.

    Yields:
      For `introduce`: the parent that says so; None where the process is alone.
    """
    given = settings(os.environ, tpu_vm=on_tpu_vm())
    if given is None:
        yield None
        return
    heartbeat = _seconds("EVOVIT_HEARTBEAT_SECONDS", HEARTBEAT)
    with supervisor.supervised(patience=heartbeat + 10) as parent:
        join(given, heartbeat, parent)
        yield parent


def join(given: dict[str, object], heartbeat: int, parent: supervisor.Child) -> None:
    """Waits for the others, and connects to process 0."""
    seconds = _seconds("EVOVIT_JOIN_SECONDS", JOIN)
    waits = f"waited {seconds} s, EVOVIT_JOIN_SECONDS, at {given.get('coordinator_address')}"
    parent.tell(waits=waits)
    words = f"waiting for the other processes, up to {seconds} s: {given or 'as found by JAX'}"
    waiting = threading.Timer(10, print, [words], {"file": sys.stderr, "flush": True})
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=heartbeat, initialization_timeout=seconds, **given
        )
    except RuntimeError as error:
        reason = first_line(error)
        print(f"error: this process could not join the others: {reason}", file=sys.stderr)
        sys.exit(supervisor.OTHER_DIED)
    finally:
        waiting.cancel()


def introduce(parent: supervisor.Child | None) -> None:
    """Tells the parent who the processes are, if there is one; JAX starts its devices for it."""
    if parent is None:
        return
    host = f"(host {socket.gethostname()}, pid {os.getpid()})"
    count = jax.process_count()
    members = [f"process {i} of {count} {who}" for i, who in enumerate(agreement.gather(host))]
    parent.tell(process=jax.process_index(), members=members)


def _whole(environ: Mapping[str, str], name: str, default: str = "", *, least: int = 0) -> int:
    """A whole number of the environment.

    Raises:
      UserError: it is none, or too small or too large to count processes.
    """
    value = environ.get(name, default)
    if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) < least:
        raise UserError(f"{name}={value!r} is no whole number from {least}")
    return int(value)


def _seconds(name: str, default: int) -> int:
    """A positive whole number of the environment.

    Raises:
      UserError: it is none.
    """
    value = os.environ.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) < 1:
        raise UserError(f"{name}={value!r} is no number of seconds")
    return int(value)
