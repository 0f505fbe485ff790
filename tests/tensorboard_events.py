"""Reads TensorBoard event files without TensorBoard."""

import io
import pathlib
import struct
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX.proto.event_pb2 import Event


def scalars(folder: pathlib.Path) -> list[tuple[int, str, float]]:
    """All scalars of a folder's event files as (step, name, value), in the order written."""
    return [(step, v.tag, v.simple_value) for step, v in _values(folder) if not v.HasField("image")]


def pictures(folder: pathlib.Path) -> list[tuple[int, str, np.ndarray]]:
    """All pictures of a folder's event files as (step, name, pixels), in the order written."""
    return [
        (step, v.tag, np.asarray(Image.open(io.BytesIO(v.image.encoded_image_string))))
        for step, v in _values(folder)
        if v.HasField("image")
    ]


def _values(folder: pathlib.Path) -> list[tuple[int, Any]]:
    found = []
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            # A record: length (8 bytes), its checksum (4), the event, its checksum (4).
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found += [(event.step, v) for v in event.summary.value]
            data = data[16 + length :]
    return found
