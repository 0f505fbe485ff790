"""The most probable classes of image files, and reading the files.

Tested in tests/predict_test.py.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from evovit_jax.data.decode import UnreadableImage, open_image
from evovit_jax.data.stored_files import expanded, read_regular
from evovit_jax.errors import UserError, first_line
from evovit_jax.inference.ready_model import ReadyModel

TOP = 5
BATCH = 8


def predict(prepared: ReadyModel, files: Sequence[str], names: Sequence[str]) -> list[dict]:
    """The most probable classes of image files.

    Returns:
      For each file `image` and `classes`, a list of `index`, `name` and `probability`, the most
      probable first.

    Raises:
      UserError: an image cannot be read.
    """
    predictions = []
    for first in range(0, len(files), BATCH):
        part = files[first : first + BATCH]
        pixels = np.stack([read(prepared, file) for file in part])
        # One size of batch, so that one program is compiled.
        filled = np.zeros((min(BATCH, len(files)), *pixels.shape[1:]), np.uint8)
        filled[: len(part)] = pixels
        scores = np.asarray(jax.nn.softmax(prepared.look(filled)[0], axis=-1))
        for file, row in zip(part, scores, strict=False):
            predictions.append({"image": file, "classes": most_probable(row, names)})
    return predictions


def most_probable(scores: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """The `TOP` classes of one image's probabilities."""
    return [
        {"index": int(i), "name": names[i], "probability": round(float(scores[i]), 6)}
        for i in np.argsort(-scores, stable=True)[:TOP]
    ]


def read(prepared: ReadyModel, file: str) -> UInt8[np.ndarray, "s s 3"]:
    """The pixels of an image file that the model sees.

    Raises:
      UserError: it cannot be read.
    """
    with readable(file):
        content = read_regular(expanded(file, "image"))
        return prepared.crop(open_image(content, prepared.max_image_pixels))


@contextlib.contextmanager
def readable(image: str) -> Iterator[None]:
    """Names the image that cannot be read.

    Raises:
      UserError: it is not there, or cannot be decoded.
    """
    try:
        yield
    except (OSError, UnreadableImage, MemoryError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"cannot read image {image}: {reason}") from None
