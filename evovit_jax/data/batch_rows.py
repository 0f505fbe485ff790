"""Rows of batches, made from their indices alone: in this process or in another.

Tested in tests/data/pipeline_test.py.
"""

import dataclasses
import random

import numpy as np
from ml_collections import ConfigDict

from evovit_jax.data.augment import EvalTransform, TrainTransform
from evovit_jax.data.decode import SmallImages, UnreadableImage
from evovit_jax.data.source import Source, open_source
from evovit_jax.errors import first_line

# What one image may do; a run goes on without it.
UNREADABLE = (UnreadableImage, MemoryError)


@dataclasses.dataclass
class Rows:
    """Some rows of a batch.

    Attributes:
        image: uint8 [n h w 3].
        label: int32 [n].
        index: int64 [n], the examples that were used.
        unreadable: (index, reason) of those that could not be.
    """

    image: np.ndarray
    label: np.ndarray
    index: np.ndarray
    unreadable: list[tuple[int, str]]

    def part(self, which: slice) -> "Rows":
        """Views of some of the rows, with a list of their own."""
        return Rows(self.image[which], self.label[which], self.index[which], [])


def empty_rows(count: int, size: int) -> Rows:
    """Rows of zeros."""
    image = np.zeros((count, size, size, 3), np.uint8)
    return Rows(image, np.zeros(count, np.int32), np.zeros(count, np.int64), [])


class TrainRows:
    """Fills rows for (indices, keys); the next readable example stands in for an unreadable one."""

    def __init__(self, config: ConfigDict, source: Source):
        self._images = SmallImages(source, config.max_image_pixels)
        self._transform = TrainTransform(config)
        # One more ends the run, so there is no sense in looking for further ones.
        self._tries = min(config.data_limit_unreadable + 1, len(source))

    def __call__(self, rows: Rows, indices: np.ndarray, keys: np.ndarray) -> None:
        for row, (index, key) in enumerate(zip(indices.tolist(), keys.tolist(), strict=True)):
            self._fill(rows, row, index, key)

    def _fill(self, rows: Rows, row: int, index: int, key: int) -> None:
        for _ in range(self._tries):
            rows.index[row] = index
            try:
                picture, rows.label[row] = self._images.get(index)
                rows.image[row] = self._transform(picture, random.Random(key))
                return
            except UNREADABLE as error:
                rows.unreadable.append((index, first_line(error)))
                index = (index + 1) % len(self._images)


class EvalRows:
    """Fills rows of evaluation; an unreadable one stays zero and is named."""

    def __init__(self, config: ConfigDict, source: Source):
        self._images = SmallImages(source, config.max_image_pixels)
        self._transform = EvalTransform(config)

    def __call__(self, rows: Rows, indices: np.ndarray) -> None:
        rows.index[:] = indices
        for row, index in enumerate(indices.tolist()):
            try:
                picture, label = self._images.get(index)
                rows.image[row] = self._transform(picture)
                rows.label[row] = label
            except UNREADABLE as error:
                rows.unreadable.append((index, first_line(error)))


def open_train_rows(config: ConfigDict) -> TrainRows:
    """What a worker process makes rows with."""
    return TrainRows(config, open_source(config.data, "train", config.data_dir))
