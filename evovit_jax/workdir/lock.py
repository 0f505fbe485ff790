"""One run at a time in a work directory: a file that names the run there, and shows that it lives.

The run's first process writes the file, and a thread counts its beats in it. Another run on the
same machine looks whether that process lives; on any other machine it watches the beats for a
while. Object stores know no exclusive creation, so there two that start at once are told apart by
reading again what was written.
"""

import contextlib
import datetime
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from evovit_jax.errors import UserError
from evovit_jax.parallel import agreement
from evovit_jax.workdir import remote
from evovit_jax.workdir.config_file import read_json

FILE = "running.json"
# Seconds between two beats, without a beat after which a run counts as dead, for which a process
# of this machine may still be about to die, and after which a write to a store is surely seen.
BEAT, SILENCE, DYING, SETTLED = 10.0, 35.0, 5.0, 1.0
Sleep = Callable[[float], None]


@contextlib.contextmanager
def held(workdir: epath.Path) -> Iterator[None]:
    """Makes the work directory, and keeps other runs out of it while the context lasts.

    Raises:
      UserError: a run is there, it cannot be written, or not all processes see the same one.
    """
    lock = Lock(workdir) if jax.process_index() == 0 else None
    with agreement.all_or_none():
        if lock:
            lock.take()
    try:
        _check_shared(workdir, lock)
        yield
    finally:
        if lock:
            lock.release()


def _check_shared(workdir: epath.Path, lock: "Lock | None") -> None:
    """Refuses work directories of the same name that are not the same place."""
    token = agreement.from_first(lock.mine["token"] if lock else None)
    with agreement.all_or_none():
        for _ in range(10):  # a file system may show another host's file late
            if (_read(workdir / FILE) or {}).get("token") == token:
                return
            time.sleep(SETTLED)
        raise UserError(
            f"the work directory {workdir} on host {socket.gethostname()} is not process 0's; give "
            "one that all processes share"
        )


class Lock:
    """The file of one work directory.

    Attributes:
      mine: what it says while this run has it.
    """

    def __init__(self, workdir: epath.Path, sleep: Sleep = time.sleep):
        self._workdir, self._path, self._sleep = workdir, workdir / FILE, sleep
        self._released = threading.Event()
        now = datetime.datetime.now(datetime.UTC)
        self.mine: dict[str, Any] = {
            "token": secrets.token_hex(8),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": machine(),
            "started": started(os.getpid()),
            "since": now.strftime("%Y-%m-%d %H:%M:%S UTC"),
            "beat": 0,
        }

    def take(self) -> None:
        """Takes the lock, from a dead run too.

        Raises:
          UserError: a run that lives has it, or the work directory cannot be written.
        """
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            if not self._create():
                other = self._other()
                if other and self._lives(other):
                    raise self._refusal(other)
                self._write()
                self._sleep(SETTLED)
                self._check_own()
        except OSError as error:
            raise UserError(
                f"the work directory {self._workdir} cannot be written: {error}"
            ) from error
        threading.Thread(target=self._keep, daemon=True).start()

    def release(self) -> None:
        """Lets others in."""
        self._released.set()
        with contextlib.suppress(OSError):
            if (_read(self._path) or {}).get("token") == self.mine["token"]:
                self._path.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Makes the file where there is none, by a call that only one of several can win."""
        if remote.is_remote(self._workdir):
            return False
        try:
            with open(self._path, "x") as file:
                file.write(json.dumps(self.mine))
        except FileExistsError:
            return False
        return True

    def _write(self) -> None:
        """Replaces the file at once, so that nobody reads half of it."""
        remote.write(self._path, json.dumps(self.mine))

    def _other(self) -> dict[str, Any] | None:
        """What is in the file; one that is empty may be about to be written."""
        other = _read(self._path)
        if other is None and self._path.exists():
            self._sleep(SETTLED)
            other = _read(self._path)
        return other

    def _check_own(self) -> None:
        other = _read(self._path)
        if other and other.get("token") != self.mine["token"]:
            raise self._refusal(other)

    def _lives(self, other: dict[str, Any]) -> bool:
        """Whether the run that wrote `other` goes on."""
        if other.get("machine") == self.mine["machine"]:
            deadline = DYING
            while deadline > 0 and _is_running(other):
                self._sleep(0.1)
                deadline -= 0.1
            return deadline <= 0
        print(f"{_who(other)} was in {self._workdir}; waiting for a sign of life", flush=True)
        for _ in range(int(SILENCE)):
            self._sleep(1.0)
            now = _read(self._path)
            if now is None:
                return False
            if now != other:
                return True
        return False

    def _refusal(self, other: dict[str, Any]) -> UserError:
        return UserError(
            f"the work directory {self._workdir} is in use by {_who(other)} since "
            f"{other.get('since')}; wait for that run, or choose another work directory"
        )

    def _keep(self) -> None:
        """Beats; ends the process where another run has taken the work directory all the same."""
        while not self._released.wait(BEAT):
            try:
                self._check_own()
                self.mine["beat"] += 1
                self._write()
            except UserError as error:
                if not self._released.is_set():
                    print(f"error: {error}", file=sys.stderr, flush=True)
                    os._exit(2)
            except OSError:
                continue  # a full disk or a store that does not answer: the run itself will say so


def _who(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid')} on host {owner.get('host')}"


def _read(path: epath.Path) -> dict[str, Any] | None:
    """What a lock says; None where there is none, or one that a kill cut short."""
    try:
        content = read_json(path)
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def machine() -> str:
    """Where a process id means the same process: a host, since its start, in a container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def started(pid: int) -> str | None:
    """When a process of this machine started, in ticks since the machine did.

    None where that is unknown, or the process has ended (and its parent has not asked how).
    """
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name, in parentheses, may hold anything
    return None if fields[0] in "ZX" else fields[19]


def _is_running(owner: dict[str, Any]) -> bool:
    """Whether a process of this machine is the one that wrote a lock, not a later one."""
    pid = owner.get("pid")
    if type(pid) is not int or not 0 < pid < 2**31:  # 0 and less are groups of processes
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return started(pid) == owner.get("started")
