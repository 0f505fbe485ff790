"""Where a run's metrics go: the console, `metrics.jsonl` and TensorBoard event files.

`metrics.jsonl` has one object a line, each with its `step`. A run that goes on from a checkpoint
first drops the lines of later steps, so that the file is what one undisturbed run would write
(but for the speeds).
"""

import json
import os
import time
from typing import Any

import jax
from etils import epath
from tensorboardX import SummaryWriter

from evovit_jax.workdir.remote import Mirror

FILE = "metrics.jsonl"
EVENTS = "tensorboard"


class MetricWriter:
    """Writes metrics on the first process; on the others it does nothing."""

    def __init__(self, workdir: epath.PathLike, restored: int | None):
        self._file = self._events = None
        self.last: dict[str, Any] = {}
        self._evaluated: set[int] = set()
        if jax.process_index() != 0:
            return
        lines = kept_lines(epath.Path(workdir) / FILE, -1 if restored is None else restored)
        for line in lines:
            self._note(json.loads(line))
        self._mirror = Mirror(workdir)
        path = self._mirror.folder / FILE
        # Written beside and moved, so that a kill leaves the old file or the new one.
        beside = path.with_suffix(".tmp")
        beside.write_text("".join(lines))
        os.replace(beside, path)
        self._file = path.open("a")
        self._events = SummaryWriter(
            str(self._mirror.folder / EVENTS), purge_step=None if restored is None else restored + 1
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line, and one scalar each for TensorBoard."""
        self._note({"step": step, **values})
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        if "val_top1" in values:
            self._events.flush()
            self._mirror.push()
        else:
            self._mirror.push(FILE)

    def _note(self, line: dict[str, Any]) -> None:
        self.last |= line
        if "val_top1" in line:
            self._evaluated.add(line["step"])

    def has_evaluation(self, step: int) -> bool:
        """Whether the evaluation after `step` steps is in the file."""
        return step in self._evaluated

    def close(self) -> None:
        """Everything is on disk afterwards."""
        if self._file is not None:
            self._file.close()
            self._events.close()
            self._mirror.push()


def kept_lines(path: epath.Path, step: int) -> list[str]:
    """The whole lines of a metrics file up to `step`; a kill may have cut the last one short."""
    kept = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            break
    return kept


class Pace:
    """Images a second, without compilation, evaluation and saving."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._since: float | None = None
        self._steps = 0
        self.seconds = 0.0
        self.images = 0

    def stepped(self) -> bool:
        """A step was taken; the first one after a pause only starts the clock, and is not counted.

        Returns:
          Whether it is counted.
        """
        if self._since is None:
            self._since = time.perf_counter()
            return False
        self._steps += 1
        return True

    def lap(self) -> float | None:
        """The rate since the last lap or pause, once the device is done; None for no step."""
        if self._since is None or not self._steps:
            return None
        now = time.perf_counter()
        seconds, images = now - self._since, self._steps * self._batch_size
        self.seconds += seconds
        self.images += images
        self._since, self._steps = now, 0
        return images / seconds

    def pause(self) -> None:
        """Stops the clock; steps that no lap has counted are left out."""
        self._since, self._steps = None, 0

    def rate(self) -> float | None:
        """The rate of all laps together."""
        return self.images / self.seconds if self.seconds else None


def progress(step: int, total: int, values: dict[str, float], batch_size: int) -> str:
    """The console's line: loss, accuracy, images a second, time left."""
    parts = [f"step {step}/{total}"]
    parts += [f"{name} {value:.4f}" for name, value in values.items() if name.startswith("loss")]
    parts.append(f"accuracy {values['accuracy']:.1f}%")
    rate = values.get("images_per_second")
    if rate:
        left = int((total - step) * batch_size / rate)
        parts += [f"{rate:.0f} images/s", f"{left // 60}m{left % 60:02d}s left"]
    return "  ".join(parts)
