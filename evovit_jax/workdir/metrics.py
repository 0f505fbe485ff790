"""Where a run's metrics go: the console, `metrics.jsonl` and TensorBoard event files.

`metrics.jsonl` has one object a line, each with its `step`. A run that goes on from a checkpoint
first drops the lines of later steps, so that the file is what one undisturbed run would write
(but for the speeds).
"""

import json
import os
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
