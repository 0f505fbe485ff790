"""Threads or processes that make the rows of a batch together.

Decoding and resizing let go of Python's lock, so threads fill the cores of a small machine without
copying a pixel; what remains of Python limits one process to a few thousand images a second, for
which a host of many cores takes processes.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np

from evovit_jax.data.rows import Rows

# Rows that a worker makes at a time.
CHUNK = 8
_make: Callable[..., Rows] | None = None  # of a worker process


class Workers:
    """Calls a maker of rows on the chunks of a batch, in threads or in processes."""

    def __init__(self, pool: Executor, make: Callable[..., Rows]):
        self._pool = pool
        self._make = make

    def __call__(self, *columns: np.ndarray) -> Iterator[tuple[slice, Rows]]:
        """Yields (rows of the batch, their content), in order.

        Args:
            *columns: what the maker takes, equally long.
        """
        count = len(columns[0])
        parts = [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]
        chunks = [[column[part] for part in parts] for column in columns]
        return zip(parts, self._pool.map(self._make, *chunks), strict=True)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads(make: Callable[..., Rows], count: int) -> Workers:
    """Threads of this process that share one maker."""
    return Workers(ThreadPoolExecutor(count, thread_name_prefix="evovit-data"), make)


def processes(open_maker: Callable[..., Callable[..., Rows]], *args: Any, count: int) -> Workers:
    """Processes that each open a maker of their own, `open_maker(*args)`, all to be pickled.

    They start anew rather than fork, since JAX has threads; a script that starts them needs
    `if __name__ == "__main__":`.
    """
    pool = ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(os.getpid(), open_maker, args),
    )
    return Workers(pool, _call)


def _start(parent: int, open_maker: Callable[..., Callable[..., Rows]], args: tuple) -> None:
    global _make
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _make = open_maker(*args)


def _end_with(parent: int) -> None:
    """A process whose parent was killed would wait for work forever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _call(*columns: np.ndarray) -> Rows:
    return _make(*columns)
