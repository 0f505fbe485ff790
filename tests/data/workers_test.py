"""Worker processes do not outlive whoever started them."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from evovit_jax.data import batch_rows, workers
from evovit_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import time
import numpy as np
from evovit_jax.data import batch_rows, workers
from tests.data.workers_test import open_numbered

if __name__ == "__main__":
    batch = batch_rows.empty_rows(2, 2)
    workers.Processes(open_numbered, count=1).fill(batch, np.arange(2))
    print(batch.label[0], flush=True)
    time.sleep(60)
"""


def numbered(made: batch_rows.Rows, indices: np.ndarray) -> None:
    made.label[:] = os.getpid()
    made.index[:] = indices
    made.unreadable += [(int(index), "odd") for index in indices if index % 2]


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


def test_threads_fill_the_first_rows_of_a_batch():
    batch = batch_rows.empty_rows(21, 2)
    unreadable = workers.Threads(numbered, 3).fill(batch, np.arange(1, 20))
    assert batch.index.tolist() == [*range(1, 20), 0, 0]
    assert unreadable == [(index, "odd") for index in range(1, 20, 2)]
    assert workers.Threads(numbered, 3).fill(batch, np.arange(0)) == []


def test_threads_are_closed_from_one_of_them():
    def make(made, indices):
        threads.close()
        numbered(made, indices)

    threads, batch = workers.Threads(make, 2), batch_rows.empty_rows(2, 2)
    assert threads.fill(batch, np.arange(2)) == [(1, "odd")]
    threads.close()


@pytest.mark.slow
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


class Broken:
    """A pool whose process is killed when it is asked."""

    def map(self, *_):
        raise BrokenProcessPool

    def shutdown(self, **_):
        pass


class Working(Broken):
    def map(self, make, *columns):
        return [made_here(*row) for row in zip(*columns, strict=True)]


def made_here(size, indices):
    rows = batch_rows.empty_rows(len(indices), size)
    numbered(rows, indices)
    return rows


def test_killed_processes_are_replaced(monkeypatch):
    pools = iter([Broken(), Broken(), Working()])
    monkeypatch.setattr(workers.Processes, "_start_all", lambda self: next(pools))
    batch = batch_rows.empty_rows(20, 2)
    unreadable = workers.Processes(open_numbered, count=1).fill(batch, np.arange(20))
    assert batch.index.tolist() == [*range(20)]
    assert unreadable == [(index, "odd") for index in range(1, 20, 2)]


def test_processes_that_are_killed_again_and_again_end_the_run(monkeypatch):
    monkeypatch.setattr(workers.Processes, "_start_all", lambda self: Broken())
    with pytest.raises(UserError, match="were killed 3 times"):
        workers.Processes(open_numbered, count=1).fill(batch_rows.empty_rows(2, 2), np.arange(2))
