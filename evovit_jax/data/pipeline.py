"""Batches of a run: which examples, decoded and augmented in threads, on this process.

Everything is a function of (seed, position): a batch is made from its number alone, so that the
iterator's state is one number, a resumed run sees what it would have seen, and neither threads
nor processes change a pixel.
"""

import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from evovit_jax.data.augment import EvalTransform, TrainTransform
from evovit_jax.data.decode import SmallImages, UnreadableImage
from evovit_jax.data.sampler import Sampler, batch_layout, epoch_length, example_keys
from evovit_jax.data.source import Source, open_source
from evovit_jax.errors import UserError

# grain wants a length; no run takes this many batches.
ENDLESS = 2**62
# Batches made ahead, on top of the one that is in use.
AHEAD = 2
# Rows that a thread makes at a time.
CHUNK = 8


def make_train_iterator(
    config: ConfigDict,
    *,
    local_batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """The endless training batches of one process.

    Each is {"image": uint8 [b h w 3], "label": int32 [b], "index": int64 [b]}, rows
    [process_index * b, (process_index + 1) * b) of a global batch that does not depend on the
    number of processes. `get_state()` is {"next_index": number of batches taken}, the same on
    every process; `set_state` continues there, whatever the number of processes was.

    Raises:
        UserError: the data cannot be opened, or has more classes than the model; from the
            iterator: more than `config.data_limit_unreadable` images cannot be read.
    """
    source = train_source(config)
    batches = _TrainBatches(
        source,
        TrainTransform(config),
        Sampler(len(source), seed, config.augment.repeats),
        _Unreadable(source, config.data_limit_unreadable),
        _threads(config),
        seed=seed,
        global_batch=local_batch_size * process_count,
        rows=slice(process_index * local_batch_size, (process_index + 1) * local_batch_size),
        layout=batch_layout(local_batch_size * process_count, config.augment.repeats),
    )
    options = grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)
    return iter(grain.MapDataset.source(batches).to_iter_dataset(options))


def make_eval_batches(
    config: ConfigDict,
    *,
    local_batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> "EvalBatches":
    """The evaluation batches of one process, every example once over all processes.

    Raises:
        UserError: as `make_train_iterator`.
    """
    return EvalBatches(eval_source(config), config, local_batch_size, process_index, process_count)


def train_source(config: ConfigDict) -> Source:
    """What `config.data` names."""
    return _fits(open_source(config.data, "train", config.data_dir), config)


def eval_source(config: ConfigDict) -> Source:
    """What `config.eval_data` names; "" is the validation, else test split of `config.data`."""
    spec = config.eval_data
    if not spec:
        kind, _, rest = config.data.partition(":")
        if kind != "tfds":
            raise UserError(f"eval_data is empty: name what to evaluate on beside {config.data}")
        from evovit_jax.data import tfds_source

        split = tfds_source.default_eval_split(rest, config.data_dir)
        spec = f"tfds:{tfds_source.parse(rest)[0]}:{split}"
    return _fits(open_source(spec, "test", config.data_dir), config)


def examples_per_epoch(config: ConfigDict) -> int:
    """Examples an epoch over all processes, by the length rule of repeated augmentation."""
    return epoch_length(len(train_source(config)), config.augment.repeats)


def num_classes(config: ConfigDict) -> int:
    """Classes of `config.data`."""
    return open_source(config.data, "train", config.data_dir).num_classes


def _fits(source: Source, config: ConfigDict) -> Source:
    wanted = config.model.num_classes
    if wanted is not None and source.num_classes > wanted:
        raise UserError(
            f"{source.name} has {source.num_classes} classes, model.num_classes={wanted}"
        )
    return source


def _threads(config: ConfigDict) -> int:
    return config.data_threads or len(os.sched_getaffinity(0))


class _Unreadable:
    """Names and counts the images that cannot be read; too many end the run."""

    def __init__(self, source: Source, limit: int):
        self._source = source
        self._limit = limit
        self._seen: set[int] = set()
        self._lock = threading.Lock()

    def add(self, index: int, error: UnreadableImage) -> None:
        name = self._source.describe(index)
        with self._lock:
            known = index in self._seen
            self._seen.add(index)
            count = len(self._seen)
        if count > self._limit:  # in every thread, whichever of them saw the last one first
            raise UserError(
                f"{count} unreadable images, the last {name} ({error}): mend or remove them, "
                f"or raise data_limit_unreadable={self._limit}"
            )
        if not known:
            logging.warning(
                "skipped unreadable image %s (%s), %d of at most %d",
                name,
                error,
                count,
                self._limit,
            )


class _TrainBatches:
    """Batch number to batch."""

    def __init__(
        self,
        source: Source,
        transform: TrainTransform,
        sampler: Sampler,
        unreadable: _Unreadable,
        threads: int,
        *,
        seed: int,
        global_batch: int,
        rows: slice,
        layout: np.ndarray,
    ):
        self._images = SmallImages(source)
        self._transform = transform
        self._sampler = sampler
        self._unreadable = unreadable
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="evovit-data")
        self._seed = seed
        self._global_batch = global_batch
        self._places = layout[rows]

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        positions = step * self._global_batch + self._places
        epochs, indices, views = self._sampler(positions)
        keys = example_keys(self._seed, epochs, indices, views)
        batch = _empty_batch(len(indices), self._transform.size)
        batch["index"] = indices

        def fill(rows: np.ndarray) -> None:
            for row in rows:
                example = self._example(int(indices[row]), int(keys[row]))
                batch["image"][row], batch["label"][row], batch["index"][row] = example

        list(self._pool.map(fill, _chunks(np.arange(len(indices)))))
        return batch

    def _example(self, index: int, key: int) -> tuple[np.ndarray, int, int]:
        """One row; the next readable image in the place of an unreadable one."""
        while True:
            try:
                image, label = self._images.get(index)
                return self._transform(image, random.Random(key)), label, index
            except UnreadableImage as error:
                self._unreadable.add(index, error)
                index = (index + 1) % len(self._images)


def _empty_batch(rows: int, size: int) -> dict[str, np.ndarray]:
    return {
        "image": np.zeros((rows, size, size, 3), np.uint8),
        "label": np.zeros(rows, np.int32),
    }


def _chunks(values: np.ndarray) -> list[np.ndarray]:
    return np.array_split(values, max(1, len(values) // CHUNK))


class EvalBatches:
    """Iterate it as often as needed; every pass is the whole set, in order.

    A batch is {"image": uint8 [b h w 3], "label": int32 [b], "mask": bool [b]}. The last batches
    are padded with zeros and a False mask, so that every process has equally many; an unreadable
    image is masked too.
    """

    def __init__(
        self,
        source: Source,
        config: ConfigDict,
        local_batch_size: int,
        process_index: int,
        process_count: int,
    ):
        self.num_examples = len(source)
        self._images = SmallImages(source)
        self._transform = EvalTransform(config)
        self._unreadable = _Unreadable(source, config.data_limit_unreadable)
        self._pool = ThreadPoolExecutor(_threads(config), thread_name_prefix="evovit-eval")
        self._batch = local_batch_size
        self._global_batch = local_batch_size * process_count
        self._first = process_index * local_batch_size

    def __len__(self) -> int:
        return -(-self.num_examples // self._global_batch)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        options = grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)
        return iter(grain.MapDataset.source(self).to_iter_dataset(options))

    def __getitem__(self, step: int) -> dict[str, Any]:
        first = step * self._global_batch + self._first
        indices = np.arange(first, first + self._batch)
        batch = _empty_batch(self._batch, self._transform.size)
        batch["mask"] = np.zeros(self._batch, bool)
        real = np.arange(self._batch)[indices < self.num_examples]
        list(self._pool.map(lambda rows: self._fill(batch, first, rows), _chunks(real)))
        return batch

    def _fill(self, batch: dict[str, np.ndarray], first: int, rows: np.ndarray) -> None:
        for row in rows:
            try:
                image, label = self._images.get(int(first + row))
                batch["image"][row] = self._transform(image)
            except UnreadableImage as error:
                self._unreadable.add(int(first + row), error)
                continue
            batch["label"][row] = label
            batch["mask"][row] = True
