"""Batches of a run: which examples, decoded and augmented in threads, on this process.

Everything is a function of (seed, position): a batch is made from its number alone, so that the
iterator's state is one number, a resumed run sees what it would have seen, and neither threads
nor processes change a pixel.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from evovit_jax.data.batch_rows import EvalRows, TrainRows, empty_rows, open_train_rows
from evovit_jax.data.sampler import Sampler, batch_layout, epoch_length, example_keys
from evovit_jax.data.source import Source, numbered_as, open_source
from evovit_jax.data.spec import DataSpec
from evovit_jax.data.workers import Processes, Threads, Workers, cores
from evovit_jax.errors import UserError, printable

# grain wants a length; no run takes this many batches.
ENDLESS = 2**62
# Classes for each training image; more are taken for a mistake, unless model.num_classes asks.
MOST_EMPTY = 10
MOST_PROCESSES = 8  # for each core: every one of them holds a Python with its libraries
# Batches made ahead, on top of the one that is in use.
READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)


def make_train_iterator(
    config: ConfigDict,
    *,
    local_batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    source: Source | None = None,
) -> grain.DatasetIterator:
    """The endless training batches of one process.

    Each is {"image": uint8 [b h w 3], "label": int32 [b], "index": int64 [b]}, rows
    [process_index * b, (process_index + 1) * b) of a global batch that does not depend on the
    number of processes. `get_state()` is {"next_index": number of batches taken}, the same on
    every process; `set_state` continues there, whatever the number of processes was; `close()`
    ends the threads and processes that make the batches. `source` is what `train_source(config)`
    returned, where it is open already.

    Raises:
        UserError: the data cannot be opened, or has more classes than the model; from the
            iterator: more than `config.data_limit_unreadable` images cannot be read.
    """
    source = source or train_source(config)
    if config.data_processes > MOST_PROCESSES * cores():
        raise UserError(
            f"data_processes={config.data_processes} must be at most {MOST_PROCESSES} for each of "
            f"the {cores()} cores here"
        )
    if config.data_processes:
        team = Processes(open_train_rows, config, count=config.data_processes)
    else:
        team = Threads(TrainRows(config, source), _threads(config))
    global_batch = local_batch_size * process_count
    first = process_index * local_batch_size
    batches = _TrainBatches(
        team,
        Sampler(len(source), seed, config.augment.repeats),
        _Unreadable(source, config.data_limit_unreadable),
        seed=seed,
        size=config.model.image_size,
        global_batch=global_batch,
        places=batch_layout(global_batch, config.augment.repeats)[first : first + local_batch_size],
    )
    return _TrainIterator(_ahead(batches), team)


def make_eval_batches(
    config: ConfigDict,
    *,
    local_batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    source: Source | None = None,
) -> "EvalBatches":
    """The evaluation batches of one process, every example once over all processes.

    `source` is what `eval_source(config)` returned, where it is open already.

    Raises:
        UserError: as `make_train_iterator`.
    """
    source = source or eval_source(config)
    return EvalBatches(source, config, local_batch_size, process_index, process_count)


def train_source(config: ConfigDict) -> Source:
    """What `config.data` names.

    Raises:
        UserError: as `open_source`; it has more classes than the model, or so many that a label
            must be wrong.
    """
    source = _fits(open_source(config.data, "train", config.data_dir), config)
    if config.model.num_classes is None and source.num_classes > MOST_EMPTY * len(source):
        raise UserError(
            f"{source.name} has {len(source)} images and labels up to {source.num_classes - 1}: "
            f"number the classes from 0, or set model.num_classes={source.num_classes}"
        )
    return source


def eval_source(
    config: ConfigDict, train: Source | None = None, *, labels_needed: bool = True
) -> Source:
    """What `config.eval_data` names; "" is the validation, else test split of `config.data`.

    Classes with names get the numbers that they have in `train`, where that is given. A folder
    without labels is refused where they are needed.

    Raises:
        UserError: as `open_source`; or it has more classes than the model, or others than `train`.
    """
    spec = config.eval_data
    if not spec:
        train_spec = DataSpec.parse(config.data)
        if train_spec.kind != "tfds":
            raise UserError(f"eval_data is empty: name what to evaluate on beside {config.data}")
        from evovit_jax.data import tfds_source

        split = tfds_source.default_eval_split(train_spec.name, config.data_dir)
        spec = f"tfds:{train_spec.name}:{split}"
    source = open_source(spec, "test", config.data_dir, labels_needed=labels_needed)
    return _fits(numbered_as(train, source) if train else source, config)


def examples_per_epoch(config: ConfigDict, source: Source) -> int:
    """Examples an epoch over all processes, by the length rule of repeated augmentation."""
    return epoch_length(len(source), config.augment.repeats)


def _fits(source: Source, config: ConfigDict) -> Source:
    wanted = config.model.num_classes
    if wanted is not None and source.num_classes > wanted:
        raise UserError(
            f"{source.name} has {source.num_classes} classes, model.num_classes={wanted}"
        )
    return source


def _threads(config: ConfigDict) -> int:
    return config.data_threads or cores()


def _ahead(batches: "_TrainBatches | EvalBatches", first: int = 0) -> grain.DatasetIterator:
    """The batches in order from number `first` on, some made ahead."""
    every = grain.MapDataset.source(batches)
    return iter((every[first:] if first else every).to_iter_dataset(READ_AHEAD))


class _TrainIterator(grain.DatasetIterator):
    """Batches made ahead, and the workers that make them."""

    def __init__(self, batches: grain.DatasetIterator, workers: Workers):
        super().__init__(batches)
        self._batches, self._workers = batches, workers

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._batches.set_state(state)

    def close(self) -> None:
        super().close()
        self._workers.close()


class _Unreadable:
    """Names and counts the images that cannot be read; too many end the run."""

    def __init__(self, source: Source, limit: int):
        self._source = source
        self._limit = limit
        self._seen: set[int] = set()
        self._lock = threading.Lock()

    def add(self, skipped: list[tuple[int, str]]) -> None:
        """Takes (index, reason) of those that a worker met.

        Raises:
            UserError: there are more than the limit, in every thread that meets one; or the whole
                folder has gone, of which no image is to be skipped.
        """
        folder = getattr(self._source, "folder", None)
        if skipped and folder and not folder.is_dir():
            raise UserError(f"the data folder {folder} has gone; put it back, then start again")
        for index, reason in skipped:
            name = printable(self._source.describe(index))
            with self._lock:
                known = index in self._seen
                self._seen.add(index)
                count = len(self._seen)
            if count == len(self._source):
                raise UserError(f"no image of {self._source.name} can be read, {name}: {reason}")
            if count > self._limit:
                raise UserError(
                    f"{count} unreadable images, the last {name} ({reason}): mend or remove them "
                    f"(in a training config.data_limit_unreadable={self._limit} can be raised)"
                )
            if not known:
                logging.warning(
                    "skipped unreadable image %s (%s), %d of at most %d",
                    name,
                    reason,
                    count,
                    self._limit,
                )


class _TrainBatches:
    """Batch number to batch."""

    def __init__(
        self,
        workers: Workers,
        sampler: Sampler,
        unreadable: _Unreadable,
        *,
        seed: int,
        size: int,
        global_batch: int,
        places: np.ndarray,
    ):
        self._workers = workers
        self._sampler = sampler
        self._unreadable = unreadable
        self._seed = seed
        self._size = size
        self._global_batch = global_batch
        self._places = places

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        positions = step * self._global_batch + self._places
        epochs, indices, views = self._sampler(positions)
        keys = example_keys(self._seed, epochs, indices, views)
        batch = empty_rows(len(indices), self._size)
        self._unreadable.add(self._workers.fill(batch, indices, keys))
        return {"image": batch.image, "label": batch.label, "index": batch.index}


class EvalBatches:
    """Iterate it as often as needed until it is closed; every pass is the whole set, in order.

    A batch is {"image": uint8 [b h w 3], "label": int32 [b], "mask": bool [b]}. The last batches
    are padded with zeros and a False mask, so that every process has equally many; an unreadable
    image is masked too. `close()`, or the end of a `with` block, ends the threads that make them.
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
        self._workers = Threads(EvalRows(config, source), _threads(config))
        self._size = config.model.image_size
        self._unreadable = _Unreadable(source, config.data_limit_unreadable)
        self._batch = local_batch_size
        self._global_batch = local_batch_size * process_count
        self._first = process_index * local_batch_size

    def __len__(self) -> int:
        return -(-self.num_examples // self._global_batch)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self.starting_at(0)

    def starting_at(self, first: int) -> Iterator[dict[str, np.ndarray]]:
        """A pass from batch number `first` on."""
        with contextlib.closing(_ahead(self, first)) as batches:
            yield from batches

    def __enter__(self) -> "EvalBatches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._workers.close()

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        first = step * self._global_batch + self._first
        last = min(first + self._batch, self.num_examples)
        batch = empty_rows(self._batch, self._size)
        mask = np.zeros(self._batch, bool)
        mask[: max(0, last - first)] = True
        unreadable = self._workers.fill(batch, np.arange(first, last))
        self._unreadable.add(unreadable)
        mask[[index - first for index, _ in unreadable]] = False
        return {"image": batch.image, "label": batch.label, "mask": mask}
