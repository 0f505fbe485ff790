"""SIGTERM: save, then end with a status that schedulers restart.

With one process a flag is set by a signal handler. With several, JAX's preemption service agrees
on the step after which all of them save.

Tested by `tests/main_test.py`, several processes by `tests/parallel/multiprocess_test.py`.
"""

import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

# What a shell reports of a process that SIGTERM ended; Kubernetes and SLURM requeue it.
EXIT_STATUS = 128 + signal.SIGTERM


class Preemption:
    """A context in which SIGTERM does not end the process but is noticed at the next step."""

    def __init__(self):
        self._received = False
        self._previous = None

    def __enter__(self) -> "Preemption":
        # Python lets only the main thread handle signals; elsewhere SIGTERM simply ends the run.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._received = True

    def reached(self, step: int) -> bool:
        """Whether to save at `step` and end; the same on all processes."""
        if jax.process_count() == 1:
            return self._received
        return multihost_utils.reached_preemption_sync_point(step)
