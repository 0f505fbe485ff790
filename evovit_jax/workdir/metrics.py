"""Where a run's metrics go: the console, `metrics.jsonl` and TensorBoard event files.

`metrics.jsonl` has one object a line, each with its `step`. A run that goes on from a checkpoint
first drops the lines of later steps, so that the file is what one undisturbed run would write
(but for the speeds). Lines that are no such objects are put into `damaged_metrics.jsonl`.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8

from evovit_jax.errors import UserError
from evovit_jax.parallel import agreement
from evovit_jax.workdir import remote
from evovit_jax.workdir.event_file import EventFile

FILE, DAMAGED = "metrics.jsonl", "damaged_metrics.jsonl"
EVENTS = "tensorboard"
MOST = 1 << 30  # bytes of a file of metrics


class MetricWriter:
    """Writes metrics on the first process; all processes know what has been written.

    Attributes:
      last: the newest value of every metric.
      top1: of every evaluation, by step.
    """

    def __init__(self, workdir: epath.PathLike, restored: int | None):
        self._file = self._events = None
        self.last: dict[str, Any] = {}
        self.top1: dict[int, float] = {}
        lines: list[str] = []
        with agreement.all_or_none():
            if jax.process_index() == 0:
                lines = self._open(epath.Path(workdir), restored)
        # The loop decides by them whether to evaluate, which all processes do together.
        for line in agreement.from_first(lines):
            self._note(json.loads(line))

    def _open(self, workdir: epath.Path, restored: int | None) -> list[str]:
        """Opens the files to go on after step `restored`; returns the lines that are kept."""
        with _said(workdir):
            lines, damaged = kept_lines(workdir / FILE, -1 if restored is None else restored)
            if damaged:
                aside = workdir / DAMAGED
                before = remote.read(aside, MOST) if aside.exists() else b""
                aside.write_bytes(before + b"".join(line + b"\n" for line in damaged))
                print(f"{FILE}: damaged lines, now in {DAMAGED}: {len(damaged)}", flush=True)
            self._mirror = remote.Mirror(workdir)
            path = self._mirror.folder / FILE
            remote.write(epath.Path(path), "".join(lines))
            self._file = path.open("a")
            purge = None if restored is None else restored + 1
            self._events = EventFile(self._mirror.folder / EVENTS, purge)
        return lines

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line, and one scalar each for TensorBoard.

        Raises:
          UserError: the work directory cannot be written.
        """
        self._note({"step": step, **values})
        if self._file is None:
            return
        with _said(self._mirror.folder):
            self._mend()
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            self._events.write(step, values)
            if "val_top1" in values:
                self._events.flush()
                self._mirror.push()
            else:
                self._mirror.push(FILE)

    def show(self, step: int, pictures: Mapping[str, UInt8[np.ndarray, "y x 3"]]) -> None:
        """Pictures by name, for TensorBoard alone.

        Raises:
          UserError: the work directory cannot be written.
        """
        if self._file is None or not pictures:
            return
        with _said(self._mirror.folder):
            self._events.show(step, pictures)
            self._mirror.push()

    def _mend(self) -> None:
        """Goes on in a new file where somebody has removed the old one."""
        if not os.fstat(self._file.fileno()).st_nlink:
            print(f"{FILE} was removed while the run wrote it; it goes on in a new one", flush=True)
            self._file.close()
            self._file = (self._mirror.folder / FILE).open("a")

    def _note(self, line: dict[str, Any]) -> None:
        self.last |= line
        if "val_top1" in line:
            self.top1[line["step"]] = line["val_top1"]

    def has_evaluation(self, step: int) -> bool:
        """Whether the evaluation after `step` steps is in the file."""
        return step in self.top1

    def close(self) -> None:
        """Everything is on disk afterwards."""
        if self._file is not None:
            with _said(self._mirror.folder):
                self._file.close()
                self._events.close()
                self._mirror.close()


@contextlib.contextmanager
def _said(workdir: epath.PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the metrics cannot be written in {workdir} ({error}); see that it is there, can be "
            "written and has room, then start again"
        ) from error


def kept_lines(path: epath.Path, step: int) -> tuple[list[str], list[bytes]]:
    """The records of a metrics file up to `step`, and the lines that hold none.

    NULs, which a power cut leaves, are no part of a line. What a kill has left of a last line is
    neither.
    """
    kept, damaged = [], []
    content = remote.read(path, MOST) if path.exists() else b""
    *lines, rest = content.split(b"\n")
    if _record(rest):
        lines.append(rest)
    for line in lines:
        line = line.strip(b"\0")
        record = _record(line)
        if record is None:
            damaged += [line] if line else []
        elif record["step"] <= step:
            kept.append(line.decode() + "\n")
    return kept, damaged


def _record(line: bytes) -> dict[str, float] | None:
    """The metrics of a line, None where it holds no such thing."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    return record if all(type(value) in (int, float) for value in record.values()) else None
