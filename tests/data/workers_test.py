"""Worker processes do not outlive whoever started them."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np

from evovit_jax.data import rows, workers

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import time
import numpy as np
from evovit_jax.data import workers
from tests.data.workers_test import open_numbered

if __name__ == "__main__":
    [(_, made)] = workers.processes(open_numbered, count=1)(np.arange(2))
    print(made.label[0], flush=True)
    time.sleep(60)
"""


def numbered(indices: np.ndarray) -> rows.Rows:
    made = rows.empty_rows(len(indices), 2)
    made.label[:] = os.getpid()
    made.index[:] = indices
    return made


def open_numbered():
    return numbered


def _alive(process: int) -> bool:
    """Whether a process runs (one that ended and was not waited for does not)."""
    try:
        os.kill(process, 0)
        state = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_chunks_come_in_order_from_threads():
    found = list(workers.threads(numbered, 3)(np.arange(19)))
    assert [part for part, _ in found] == [slice(0, 8), slice(8, 16), slice(16, 24)]
    assert np.concatenate([made.index for _, made in found]).tolist() == list(range(19))
    assert not list(workers.threads(numbered, 3)(np.arange(0)))


def test_a_worker_ends_when_its_parent_is_killed():
    parent = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(worker)
