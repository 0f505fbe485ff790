"""A run's event file for TensorBoard, written by the thread that calls.

tensorboardX's own `SummaryWriter` writes in a thread, which a full disk ends; the run would then
wait for that thread for ever. Tested in tests/workdir/metrics_test.py.
"""

import os
import pathlib
import time
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import image, scalar

FLUSH_SECONDS = 60.0


class EventFile:
    """A new event file in a folder.

    Every method raises OSError where it cannot be written.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int | None):
        """`purge_step`: TensorBoard forgets what earlier files say of this step and later ones."""
        self._flushed = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), filename_suffix=f".{os.getpid()}")
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=purge_step, file_version="brain.Event:2"))
            self._writer.write_event(Event(step=purge_step, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar for each value; on disk within `FLUSH_SECONDS`, where lines go on."""
        for name, value in values.items():
            summary = scalar(name, value)
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def show(self, step: int, pictures: Mapping[str, UInt8[np.ndarray, "y x 3"]]) -> None:
        """Pictures by name, on disk afterwards."""
        for name, pixels in pictures.items():
            summary = image(name, pixels, dataformats="HWC")
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self.flush()

    def flush(self) -> None:
        """What was written so far is on disk afterwards."""
        self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Lets go of the file."""
        self._writer.close()
