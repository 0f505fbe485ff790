"""Reads TensorBoard event files without TensorBoard."""

import pathlib
import struct

from tensorboardX.proto.event_pb2 import Event


def scalars(folder: pathlib.Path) -> list[tuple[int, str, float]]:
    """All scalars of a folder's event files as (step, name, value), in the order written."""
    found = []
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            # A record: length (8 bytes), its checksum (4), the event, its checksum (4).
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            data = data[16 + length :]
    return found
