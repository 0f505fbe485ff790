"""Ends a process when another one of its run dies, and lets the user know which.

JAX alone notices by its heartbeat, late, and its message names a task, no host. Here a companion of
each process tells at once (see `companion`); JAX's heartbeat stays as the second line, for hosts
between which companions cannot connect.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
from types import TracebackType
from typing import Any

from absl import logging
from jax._src import distributed

from evovit_jax.errors import UserError
from evovit_jax.parallel import companion

# Where process 0 tells the others how to reach its companion.
KEY = "evovit_jax/companions"
# Seconds that the others wait for it, and that a process has to print its own error.
PATIENCE, LAST_WORDS = 60, 1.0


class Watch:
    """A context in which the death of one process ends all, with a line that says which.

    To be entered on every process after `jax.distributed.initialize`.
    """

    def __init__(self):
        # JAX keeps the coordinator's address and its key-value store to itself.
        self._jax = distributed.global_state
        self._companion: subprocess.Popen | None = None

    def __enter__(self) -> "Watch":
        try:
            self._start()
        except Exception as error:  # a run goes on without; JAX's heartbeat is left
            logging.warning("the other processes are not watched: %s", error)
        return self

    def _start(self) -> None:
        client, index = self._jax.client, self._jax.process_id
        host = self._jax.coordinator_address.rpartition(":")[0].strip("[]")
        me = {
            "process": index,
            "count": self._jax.num_processes,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        if index == 0:
            token = secrets.token_hex(16)
            self._spawn({"me": me, "token": token, "hub": None})
            port = int(self._companion.stdout.readline())
            client.key_value_set(KEY, json.dumps({"token": token, "hub": [host, port]}))
        else:
            found = client.blocking_key_value_get(KEY, PATIENCE * 1000)
            self._spawn({"me": me, **json.loads(found)})
        threading.Thread(target=self._obey, daemon=True).start()

    def _spawn(self, given: dict[str, Any]) -> None:
        self._companion = subprocess.Popen(
            [sys.executable, "-I", "-S", companion.__file__, json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # what ends the process's group should not end it
        )

    def _obey(self) -> None:
        """Ends this process, from a thread, when its companion says so."""
        for line in self._companion.stdout:
            if line.startswith(b"end "):
                # Whatever the main thread does (it may wait in a collective), it cannot go on.
                threading.Event().wait(LAST_WORDS)
                sys.stdout.flush()
                os._exit(int(line.split()[1]))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._companion is None:
            return
        message = {"event": "done"}
        if error is not None:
            why = str(error).strip().partition("\n")[0]
            is_mendable = isinstance(error, UserError)
            message = {
                "event": "failed",
                "why": why if is_mendable else f"{kind.__name__}: {why}",
                "status": 2 if is_mendable else 1,
            }
        try:
            self._companion.stdin.write(json.dumps(message).encode() + b"\n")
            self._companion.stdin.flush()
        except OSError:
            logging.warning("the companion process is gone")
