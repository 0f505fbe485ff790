"""Threads or processes that make the rows of a batch together.

Decoding and resizing let go of Python's lock, so threads fill the cores of a small machine without
copying a pixel; what remains of Python limits one process to a few thousand images a second, for
which a host of many cores takes processes.
"""

import abc
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
from absl import logging

from evovit_jax.data.batch_rows import Rows, empty_rows
from evovit_jax.errors import UserError

# Rows that a worker makes at a time.
CHUNK = 8
# How often killed processes are replaced for one batch.
TRIES = 3
# Fills rows for what stands in some columns, such as indices and keys.
Maker = Callable[..., None]
_make: Maker | None = None  # of a worker process


class Workers(abc.ABC):
    """Fills batches, some rows at a time; open until `close`."""

    _pool: Executor

    def fill(self, batch: Rows, *columns: np.ndarray) -> list[tuple[int, str]]:
        """Fills the first rows of a batch; returns (index, reason) of what could not be read.

        Args:
            batch: as long as the columns, or longer.
            *columns: what the maker takes, equally long.
        """
        count = len(columns[0])
        parts = [slice(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
        chunks = [[column[part] for part in parts] for column in columns]
        filled = list(self._fill([batch.part(part) for part in parts], *chunks))
        return [skipped for rows in filled for skipped in rows.unreadable]

    def close(self) -> None:
        """Ends the threads or processes and waits for it; what is not begun is not made."""
        self._pool.shutdown(cancel_futures=True)

    @abc.abstractmethod
    def _fill(self, parts: list[Rows], *chunks: list[np.ndarray]) -> Iterator[Rows]:
        """Fills each part for its chunk of every column; yields what it was made from."""


class Threads(Workers):
    """Threads of this process that share one maker and write into the batch."""

    def __init__(self, make: Maker, count: int):
        self._make, self._own = make, (own := set[int]())
        self._pool = ThreadPoolExecutor(
            count, "evovit-data", initializer=lambda: own.add(threading.get_ident())
        )

    def close(self) -> None:
        """Ends the threads and waits for it, but in one of them, which cannot wait for itself.

        That is where an iterator that nobody closed may be collected.
        """
        elsewhere = threading.get_ident() not in self._own
        self._pool.shutdown(wait=elsewhere, cancel_futures=True)

    def _fill(self, parts: list[Rows], *chunks: list[np.ndarray]) -> Iterator[Rows]:
        def fill(rows: Rows, *columns: np.ndarray) -> Rows:
            self._make(rows, *columns)
            return rows

        return self._pool.map(fill, parts, *chunks)


class Processes(Workers):
    """Processes that each open a maker of their own, `open_maker(*args)`, all to be pickled.

    They start anew rather than fork, since JAX has threads; a script that starts them needs
    `if __name__ == "__main__":`.
    """

    def __init__(self, open_maker: Callable[..., Maker], *args: Any, count: int):
        self._count, self._started_with = count, (os.getpid(), open_maker, args)
        self._lock = threading.Lock()
        self._pool = self._start_all()

    def _start_all(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self._count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=self._started_with,
        )

    def _fill(self, parts: list[Rows], *chunks: list[np.ndarray]) -> Iterator[Rows]:
        sizes = [part.image.shape[1] for part in parts]
        for part, made in zip(parts, self._make_all(sizes, *chunks), strict=True):
            part.image[:], part.label[:], part.index[:] = made.image, made.label, made.index
            yield made

    def _make_all(self, *columns: list) -> list[Rows]:
        """The rows of a batch; made again by new processes where the system has killed one."""
        for _ in range(TRIES):
            pool = self._pool
            try:
                return list(pool.map(_make_rows, *columns))
            except BrokenProcessPool:
                with self._lock:  # several batches are made at once
                    if pool is self._pool:
                        logging.warning("a process that makes batches was killed; starting anew")
                        self._pool = self._start_all()
                        pool.shutdown(wait=False)
        raise UserError(
            f"the processes that make batches were killed {TRIES} times: see that they have "
            "memory, or lower data_processes, then start again"
        )


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start(parent: int, open_maker: Callable[..., Maker], args: tuple) -> None:
    global _make
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _make = open_maker(*args)


def _end_with(parent: int) -> None:
    """A process whose parent was killed would wait for work forever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _make_rows(size: int, *columns: np.ndarray) -> Rows:
    rows = empty_rows(len(columns[0]), size)
    _make(rows, *columns)
    return rows
