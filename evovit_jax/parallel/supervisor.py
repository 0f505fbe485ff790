"""A small parent of each process of a run, which says in one line how the process ended.

JAX notices by its heartbeat that another process has died, and then aborts this one from C++ with a
stack trace; so do collectives whose other end is gone. Python has no say in that. So the process
forks before JAX starts: the child trains, the parent waits, passes signals on, and makes one line
and the status `OTHER_DIED` of an abort.

What libraries write to the child's standard error is passed on some seconds late, so that the words
that belong to an abort can be kept out of it; they lie in a file that the line names.
"""

import collections
import contextlib
import json
import os
import re
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

from evovit_jax.errors import AGAIN, ending

# The status of a process that another one's death ended.
OTHER_DIED = AGAIN
# Seconds for which what libraries say is held back, and that a process with an error of its own
# stays, so that one which has the same error is not aborted before it has said so.
HELD, GRACE = 10.0, 2.0
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Child:
    """The child's end of the connection to its parent."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        threading.Thread(target=self._end_with_parent, daemon=True).start()

    def tell(self, **facts: Any) -> None:
        """Lets the parent know, for the line that it may have to write."""
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(facts).encode() + b"\n")

    def _end_with_parent(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.recv(1)  # the parent sends nothing: this returns when it has ended
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def supervised(patience: float) -> Iterator[Child]:
    """The body runs in a child of this process, which itself ends with the child's status.

    Args:
      patience: seconds that an error may turn out to follow from the death of another process: a
        collective fails at once, JAX's heartbeat, which knows, is slower.
    """
    here, there = socket.socketpair()
    heard, said = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of every fork, but none of its threads runs yet
        # A signal that comes before the parent can pass it on waits until it can.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        pid = os.fork()
    if pid:
        there.close()
        os.close(said)
        parent = Parent(pid, here, heard)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        sys.exit(parent.wait())
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    here.close()
    os.close(heard)
    os.setsid()  # signals to a terminal's group reach the parent, which passes them on once
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    os.dup2(said, 2)
    child = Child(there)
    try:
        yield child
    except (Exception, KeyboardInterrupt) as error:
        found = ending(error)
        if found is None:
            time.sleep(patience)
            _leave(1, traceback.format_exc(), 0)
        status, line = found
        child.tell(status=status)
        _leave(status, f"error: {line}\n", GRACE)


def _leave(status: int, text: str, grace: float) -> None:
    """Ends the process without the goodbyes of JAX, which would wait for all others."""
    sys.stderr.write(text)
    sys.stderr.flush()
    sys.stdout.flush()
    time.sleep(grace)
    os._exit(status)


class Parent:
    """The parent's side.

    Attributes:
      facts: what the child has told: `process` (its index), `members` (all hosts and process ids),
        `waits` (what it waits for while it joins), `status` (with which it is about to end).
    """

    def __init__(self, pid: int, connection: socket.socket, heard: int):
        self._pid, self._connection, self._heard = pid, connection, heard
        self._told, self._held = b"", collections.deque()
        self.facts: dict[str, Any] = {}
        for number in FORWARDED:
            signal.signal(number, lambda number, _: self._forward(number))

    def _forward(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, number)

    def wait(self) -> int:
        """Waits for the child; returns the status to end with."""
        status = None
        while status is None:
            self._listen(0.2)
            ended, found = os.waitpid(self._pid, os.WNOHANG)
            status = found if ended else None
        self._listen(0)
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGABRT and "status" not in self.facts:
            words = b"".join(data for _, data in self._held).decode(errors="replace")
            print(f"error: {verdict(self.facts, words)}{_kept(words)}", file=sys.stderr, flush=True)
            return OTHER_DIED
        self._pass_on(before=float("inf"))
        if code >= 0:
            return code
        if "status" in self.facts:
            return self.facts["status"]
        if -code in FORWARDED:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)  # ends as the child has
        return 128 - code

    def _listen(self, seconds: float) -> None:
        """Takes what the child and its libraries say within so many seconds."""
        ready = [self._heard, self._connection]
        while ready:
            ready, _, _ = select.select([self._heard, self._connection], [], [], seconds)
            seconds, ended = 0, False
            for file in ready:
                data = os.read(self._heard if file == self._heard else file.fileno(), 65536)
                ended |= not data
                if file == self._heard:
                    self._held.append((time.monotonic(), data))
                else:
                    self._take(data)
            if ended:
                time.sleep(0.05)
                break
        self._pass_on(before=time.monotonic() - HELD)

    def _take(self, data: bytes) -> None:
        *lines, self._told = (self._told + data).split(b"\n")
        for line in lines:
            self.facts |= json.loads(line)

    def _pass_on(self, before: float) -> None:
        while self._held and self._held[0][0] < before:
            os.write(2, self._held.popleft()[1])


def verdict(facts: dict[str, Any], words: str) -> str:
    """One line on a process that was aborted.

    Args:
      facts: as in `Parent`.
      words: what was written before the abort. JAX's reason is shown, and the numbers that it lists
        are given their hosts; nothing is decided by it.
    """
    status = words.partition("absl::Status: ")[2]
    reason = (status or words).strip().partition("\n\n")[0].partition("\nAdditional")[0]
    members = facts.get("members")
    if members is None:
        return f"not all processes of this run came: {_flat(reason)} ({facts.get('waits')})"
    numbers = [int(n) for n in re.findall(r"^(\d+)$", reason, re.MULTILINE)]
    if not numbers and len(members) == 2:
        numbers = [1 - facts["process"]]
    elif not numbers and facts["process"] > 0 and status:
        numbers = [0]  # a process hears of the others from process 0 alone
    dead = ", ".join(members[n] for n in numbers if n < len(members)) or "another process"
    return (
        f"{dead} died or does not answer ({_flat(reason)}); so {members[facts['process']]} ends. "
        "Started again, all go on from the last checkpoint"
    )


def _flat(text: str) -> str:
    return " ".join(text.split())[:200]


def _kept(words: str) -> str:
    """Puts the last words of an aborted process into a file, and says which."""
    if not words:
        return ""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="evovit_jax_", delete=False) as file:
            file.write(words)
        return f" (its last words: {file.name})"
    except OSError:
        return ""
