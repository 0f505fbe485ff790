"""Means over the images of a data set and their intervals, in memory that has a bound."""

from collections.abc import Hashable

import numpy as np
from jaxtyping import Float, Int

from evovit_jax.benchmarking import figures

# Groups that images are dealt into; each image is one of its own while there are no more.
MOST_GROUPS = 1024


class GroupMeans:
    """Sums over groups of images: enough for a mean, and for its bootstrap over the groups.

    A value that is not a number is not counted. Groups are dealt by chance, always the same.
    """

    def __init__(self, images: int):
        self._group = np.arange(images)
        if images > MOST_GROUPS:
            self._group = np.random.default_rng(0).permutation(images) % MOST_GROUPS
        self._groups = min(images, MOST_GROUPS)
        self._sums: dict[Hashable, tuple[np.ndarray, np.ndarray]] = {}

    def add(
        self, name: Hashable, images: Int[np.ndarray, " b"], values: Float[np.ndarray, "b *v"]
    ) -> None:
        """Adds a quantity of some images, given by their numbers in the data set."""
        shape = (self._groups, *values.shape[1:])
        sums, counts = self._sums.setdefault(name, (np.zeros(shape), np.zeros(shape)))
        there = ~np.isnan(values)
        np.add.at(sums, self._group[images], np.where(there, values, 0.0))
        np.add.at(counts, self._group[images], there)

    def mean(self, name: Hashable) -> Float[np.ndarray, "*v"]:
        """The mean of a quantity over the images that have it; not a number where none has."""
        sums, counts = self._sums[name]
        with np.errstate(invalid="ignore"):
            return np.asarray(sums.sum(axis=0) / counts.sum(axis=0))

    def count(self, name: Hashable) -> int:
        """Of how many images a quantity was added, or of its last entry."""
        return int(self._sums[name][1].reshape(self._groups, -1)[:, -1].sum())

    def interval(self, name: Hashable) -> tuple[float, float]:
        """The interval of confidence of the mean of a quantity's last entry; see `figures`."""
        sums, counts = (x.reshape(self._groups, -1)[:, -1] for x in self._sums[name])
        there = counts > 0
        return figures.interval(sums[there] / counts[there])

    def __contains__(self, name: Hashable) -> bool:
        return name in self._sums
