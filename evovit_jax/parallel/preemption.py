"""Signals: SIGTERM saves and ends with a status that schedulers restart; others end at once.

With one process a flag is set by a signal handler. With several, JAX's preemption service agrees
on the step after which all of them save.

Tested by `tests/main_test.py`, several processes by `tests/parallel/multiprocess_test.py`.
"""

import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

from evovit_jax.errors import end_now

# What a shell reports of a process that SIGTERM ended; Kubernetes and SLURM requeue it.
EXIT_STATUS = 128 + signal.SIGTERM
# What ends a run without a checkpoint.
INTERRUPTS = (signal.SIGINT, signal.SIGHUP)


class Preemption:
    """A context in which signals do not end the process but are noticed at the next step.

    One that comes twice ends the process at once.
    """

    def __init__(self):
        self._received: set[int] = set()
        self._previous = {}

    def __enter__(self) -> "Preemption":
        # Python lets only the main thread handle signals; elsewhere they simply end the run.
        if threading.current_thread() is threading.main_thread():
            numbers = [*INTERRUPTS, *([signal.SIGTERM] if jax.process_count() == 1 else [])]
            for number in numbers:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # as under nohup
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number in INTERRUPTS and number in self._received:
            end_now(number, frame)
        self._received.add(number)

    def reached(self, step: int) -> bool:
        """Whether to save at `step` and end; the same on all processes.

        Raises:
          KeyboardInterrupt: this process is to end at once.
        """
        for number in self._received.intersection(INTERRUPTS):
            raise KeyboardInterrupt(number)
        if jax.process_count() == 1:
            return signal.SIGTERM in self._received
        return multihost_utils.reached_preemption_sync_point(step)
