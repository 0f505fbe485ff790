"""Which example stands at which place of a run, as a pure function of (seed, position).

Positions count the examples that all processes together have taken since the start of training.
A run that goes on with another number of processes therefore goes on with the same order.
"""

import functools

import numpy as np

# DeiT's sampler truncates an epoch of repeated augmentation to a multiple of this
# (Touvron et al. 2021, https://arxiv.org/abs/2012.12877; "repeated augmentation").
EPOCH_MULTIPLE = 256


def mix64(values: np.ndarray) -> np.ndarray:
    """Scatters uint64 values over all uint64 (SplitMix64's finaliser, Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def example_keys(
    seed: int, epochs: np.ndarray, indices: np.ndarray, views: np.ndarray
) -> np.ndarray:
    """uint64 keys [n] from which the augmentation of each example is drawn.

    The arithmetic is spelled out here, so that no version of a library can change a run's data.
    """
    keys = np.full(np.shape(indices), seed % 2**64, np.uint64)
    for part in (epochs, indices, views):
        keys = mix64(keys ^ mix64(np.asarray(part).astype(np.uint64)))
    return keys


class Sampler:
    """The endless order of a training run.

    Every epoch is a new permutation of the examples. With `repeats` views of each image, the
    permutation's images stand `repeats` times in a row and the epoch is cut to the number of
    examples, rounded down to a multiple of 256 as in DeiT: one epoch shows a third of the images
    three times each.
    """

    def __init__(self, num_examples: int, seed: int, repeats: int = 1):
        self._num_examples = num_examples
        self._seed = seed
        self._repeats = repeats
        self.epoch_length = epoch_length(num_examples, repeats)
        # Batches run over the end of an epoch, and two may be in the making.
        self._order = functools.lru_cache(maxsize=2)(self._shuffle)

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places in the run [n] to (epochs, indices, views), int64 [n] each."""
        epochs, places = np.divmod(positions, self.epoch_length)
        images, views = np.divmod(places, self._repeats)
        indices = np.empty_like(images)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._order(int(epoch))[images[here]]
        return epochs, indices, views

    def _shuffle(self, epoch: int) -> np.ndarray:
        n = np.arange(self._num_examples)
        keys = example_keys(self._seed, np.full_like(n, epoch), n, np.full_like(n, -1))
        return np.argsort(keys, kind="stable")


def epoch_length(num_examples: int, repeats: int = 1) -> int:
    """Examples an epoch, all processes together.

    With repeated augmentation DeiT's `floor(n // 256 * 256)`; below 256 examples, all of them.
    """
    if repeats > 1 and num_examples >= EPOCH_MULTIPLE:
        return num_examples // EPOCH_MULTIPLE * EPOCH_MULTIPLE
    return num_examples


def batch_layout(batch_size: int, repeats: int) -> np.ndarray:
    """Which position of a batch each row takes [batch_size].

    Views of one image follow each other in the order; in a batch they are spread, first views
    first, so that they land on different devices and are not mixed with each other.
    """
    return np.argsort(np.arange(batch_size) % repeats, kind="stable")
