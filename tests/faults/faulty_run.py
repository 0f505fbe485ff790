"""A training that things happen to: started, watched by what it prints, started again."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

from tiny import tiny_flags

PATIENCE = 300.0  # seconds for anything to happen
# Everything random is on, and intervals that do not divide each other.
TRAINING = {
    "batch_size": 8,
    "eval_batch_size": 12,
    "checkpoint_steps": 5,
    "eval_steps": 17,
    "log_steps": 1,
    "keep_checkpoints": 4,
    "model.drop_path_rate": 0.2,
    "augment.mixup": 0.8,
    "augment.erasing_prob": 0.25,
}


class FaultyRun:
    """`evovit_jax.main` in one work directory.

    Attributes:
      workdir: of the run.
      images: the folder with `train` and `test`.
      process: the one that runs, or ran last.
      restored: the step that it went on from.
      lost: steps before the last restart that are trained again.
    """

    def __init__(self, workdir: pathlib.Path, images: pathlib.Path, steps: int):
        self.workdir, self.images, self.steps = workdir, images, steps
        self.process: subprocess.Popen | None = None
        self.restored, self.lost, self._reached, self._starts = 0, 0, 0, 0
        self._log = workdir.with_name(f"{workdir.name}.out")

    def start(self, **fields: object) -> None:
        """Starts the command, or starts it again."""
        given = TRAINING | {"total_steps": self.steps} | fields
        given |= {"data": f"folder:{self.images / 'train'}"}
        given |= {"eval_data": f"folder:{self.images / 'test'}"}
        flags = [f"--config.{name}={value}" for name, value in given.items()]
        command = [sys.executable, "-m", "evovit_jax.main", *tiny_flags(), *flags]
        environ = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONUNBUFFERED": "1"}
        self._starts += 1
        self._log = self.workdir.with_name(f"{self.workdir.name}.{self._starts}.out")
        self._errors = self._log.with_suffix(".err")
        with self._log.open("w") as out, self._errors.open("w") as err:
            self.process = subprocess.Popen(
                [*command, f"--workdir={self.workdir}"],
                stdout=out,
                stderr=err,
                env=environ,
                # As a terminal starts it; nohup would have had it ignored.
                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
            )

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def step(self) -> int:
        """The last step that the process has said it took."""
        found = re.findall(r"^step (\d+)/", self._log.read_text(), re.MULTILINE)
        return int(found[-1]) if found else 0

    def started_from(self) -> int | None:
        """The step that the process went on from; None before it is known."""
        text = self._log.read_text()
        found = re.search(r"^restored step (\d+)$", text, re.MULTILINE)
        return int(found[1]) if found else (0 if re.search(r"^\d+ devices", text, re.M) else None)

    def wait_until(self, reached) -> None:
        """Until `reached()`, or the process has ended."""
        deadline = time.monotonic() + PATIENCE
        while self.is_running() and not reached():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing happened for {PATIENCE} s: {self.said()}")
            time.sleep(0.01)

    def wait_for_end(self) -> int:
        """The status that it ends with."""
        self._reached = max(self._reached, self.step())
        return self.process.wait(PATIENCE)

    def said(self) -> str:
        """What the process has written to standard error."""
        return self._errors.read_text()

    def go_on(self) -> None:
        """Starts it again where it has ended, and waits until it trains."""
        self._reached = max(self._reached, self.step())
        self.lost = 0
        if self.is_running():
            return
        self.start()
        self.wait_until(lambda: self.started_from() is not None)
        if not self.is_running() and self.process.returncode:
            raise AssertionError(f"it did not go on: {self._log.read_text()}{self.said()}")
        self.restored = self.started_from()
        self.lost, self._reached = max(0, self._reached - self.restored), 0

    def finish(self) -> None:
        """Waits for the end of the training."""
        status = self.wait_for_end()
        assert status == 0, f"{status}: {self._log.read_text()}{self.said()}"
