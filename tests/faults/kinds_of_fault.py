"""What can happen to a training."""

import contextlib
import errno
import os
import pathlib
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import ClassVar

from evovit_jax.errors import AGAIN, MEND
from evovit_jax.parallel.preemption import EXIT_STATUS
from evovit_jax.workdir import checkpoints
from faults.faulty_run import FaultyRun

IN_START = 0.2  # share of the faults that happen while a run starts
STARTING = 4.0  # seconds


class Fault:
    """One thing that happens to a run, at a moment that is drawn.

    Attributes:
      name: as in the table.
      weight: how often it is drawn, against the others.
      statuses: with which the run may end; empty for one that goes on.
      fields: of the config, for the run that it happens to.
      fills: whether it fills the file system that the run lies in.
    """

    name = ""
    weight = 2
    statuses: ClassVar[tuple[int, ...]] = ()
    fields: ClassVar[dict[str, object]] = {}
    fills = False

    def __init__(self, run: FaultyRun, draw: random.Random):
        self.run, self.draw = run, draw

    def happen(self, target: int) -> str:
        """Waits for the moment, about step `target`, and lets it happen.

        Returns:
          What was not as it should be; "" for nothing.
        """
        run = self.run
        if not run.is_running():
            run.start(**self.fields)
        if self.draw.random() < IN_START and not self.fields:
            time.sleep(self.draw.uniform(0, STARTING))
        else:
            run.wait_until(lambda: run.step() >= max(target, 1))
            time.sleep(self.draw.uniform(0, 0.3))
        if not run.is_running():
            return f"ended too early: {run.process.returncode} {run.said()}"
        try:
            self.strike()
            if not self.statuses:
                return ""
            status = run.wait_for_end()
        finally:
            self.mend()
        return self._judge(status)

    def strike(self) -> None:
        """The fault itself."""
        raise NotImplementedError

    def mend(self) -> None:
        """What a user would do about it."""

    def _judge(self, status: int) -> str:
        said = self.run.said()
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        if status not in self.statuses:
            return f"status {status}: {said}"
        if "Traceback" in said:
            return f"a traceback: {said}"
        if status in (MEND, AGAIN) and len(errors) != 1:
            return f"not one line: {said}"
        return ""


class Killed(Fault):
    name, weight, statuses = "SIGKILL", 8, (-signal.SIGKILL,)

    def strike(self) -> None:
        self.run.process.kill()


class Terminated(Fault):
    # While Python starts, or once the run is at its end, the signal simply ends it.
    name, weight, statuses = "SIGTERM", 4, (EXIT_STATUS, -signal.SIGTERM, 0)

    def strike(self) -> None:
        self.run.process.terminate()


class Interrupted(Fault):
    # Python that has not started yet dies of the signal.
    name, statuses = "SIGINT", (AGAIN, -signal.SIGINT)

    def strike(self) -> None:
        self.run.wait_until(lambda: self.run.started_from() is not None)
        self.run.process.send_signal(signal.SIGINT)


class HungUp(Interrupted):
    name, statuses = "SIGHUP", (AGAIN, -signal.SIGHUP)

    def strike(self) -> None:
        self.run.wait_until(lambda: self.run.started_from() is not None)
        self.run.process.send_signal(signal.SIGHUP)


class Stopped(Fault):
    name = "SIGSTOP, SIGCONT a second later"

    def strike(self) -> None:
        self.run.process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        self.run.process.send_signal(signal.SIGCONT)


class StoppedAndKilled(Fault):
    name, statuses = "SIGSTOP, SIGKILL a second later", (-signal.SIGKILL,)

    def strike(self) -> None:
        self.run.process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        self.run.process.kill()


class FullDisk(Fault):
    """Files cannot grow beyond a kilobyte any more, as where a quota is used up."""

    name, weight, statuses = "disk or quota full", 4, (MEND,)

    def strike(self) -> None:
        self.run.wait_until(lambda: self.run.started_from() is not None)
        limits = (1000, resource.RLIM_INFINITY)
        resource.prlimit(self.run.process.pid, resource.RLIMIT_FSIZE, limits)


class FullFileSystem(Fault):
    """The file system of the work directory has no room: a small one in memory, filled up."""

    name, statuses, fills = "file system full (tmpfs)", (MEND,), True

    def strike(self) -> None:
        self.run.wait_until(lambda: self.run.started_from() is not None)
        with (self.run.workdir.parent / "filler").open("wb") as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def mend(self) -> None:
        (self.run.workdir.parent / "filler").unlink(missing_ok=True)


class DamagedFile(Fault):
    """A file of the newest checkpoint is not what it was, after the run was killed."""

    weight, statuses = 3, (-signal.SIGKILL,)

    def strike(self) -> None:
        folder = self.run.workdir / checkpoints.FOLDER
        self.run.wait_until(lambda: len(checkpoints.steps_in(folder)) > 1)
        self.run.process.kill()
        self.run.process.wait()
        newest = folder / str(checkpoints.steps_in(folder)[-1])
        files = sorted(path for path in newest.rglob("*") if path.is_file())
        self.damage(self.draw.choice(files))

    def damage(self, path: pathlib.Path) -> None:
        """Changes one file."""
        raise NotImplementedError


class Truncated(DamagedFile):
    name = "checkpoint file truncated"

    def damage(self, path: pathlib.Path) -> None:
        os.truncate(path, self.draw.randrange(max(1, path.stat().st_size)))


class Zeroed(DamagedFile):
    name = "checkpoint file zeroed"

    def damage(self, path: pathlib.Path) -> None:
        path.write_bytes(bytes(path.stat().st_size))


class Removed(DamagedFile):
    name = "checkpoint file removed"

    def damage(self, path: pathlib.Path) -> None:
        path.unlink()


class DataGone(Fault):
    """The data folder is not there for a while: a start is refused, the one after goes on."""

    name, statuses = "data folder gone for a while", (MEND,)

    def strike(self) -> None:
        run = self.run
        self._away = run.images.with_name("away")
        run.process.kill()
        run.process.wait()
        run.wait_for_end()
        run.images.rename(self._away)
        run.start()

    def mend(self) -> None:
        self._away.rename(self.run.images)


class WorkerKilled(Fault):
    """The system kills a process that makes batches; the run goes on with a new one."""

    name = "data worker killed"
    fields: ClassVar = {"data_processes": 1}

    def happen(self, target: int) -> str:
        if self.run.is_running():  # it makes its batches in threads
            self.run.process.kill()
            self.run.wait_for_end()
        return super().happen(target)

    def strike(self) -> None:
        os.kill(self._worker(), signal.SIGKILL)
        further = self.run.step() + 5
        self.run.wait_until(lambda: self.run.step() > further)

    def _worker(self) -> int:
        """The process that makes the run's batches."""
        for task in pathlib.Path(f"/proc/{self.run.process.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                if b"spawn_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
        raise AssertionError("the run has no process that makes batches")


FAULTS = (
    Killed, Terminated, Interrupted, HungUp, Stopped, StoppedAndKilled, FullDisk, FullFileSystem,
    Truncated, Zeroed, Removed, DataGone, WorkerKilled,
)  # fmt: skip


@contextlib.contextmanager
def file_system(folder: pathlib.Path, size: str) -> Iterator[bool]:
    """A folder that is a file system of so many bytes in memory; yields whether that is allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        is_mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        is_mounted = False
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
