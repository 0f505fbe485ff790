"""Figures of a comparison: intervals of confidence, agreement, and the Pareto front."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Shaped

DRAWS = 10_000
CONFIDENCE = 0.95


def interval(values: Shaped[np.ndarray, " n"], *, seed: int = 0) -> tuple[float, float]:
    """The mean's interval of confidence by the bootstrap over images (Efron, 1979): percentiles.

    `DRAWS` times as many images are drawn, with replacement. How often each value comes up is all
    that the mean asks for, and that is a draw of a multinomial distribution: of a million images it
    takes no longer than of ten, where there are few different values (hits, differences of hits).

    Args:
      values: one an image, numbers or whether it was hit; not empty.
      seed: of the draws; the same for the same interval.
    """
    kinds, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=DRAWS)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn @ kinds / len(values), (tail, 1 - tail))
    return float(low), float(high)


def agreement(answers: Int[np.ndarray, " n"], reference: Int[np.ndarray, " n"]) -> float:
    """The share of images with the same answer; -1 is no answer, with which nothing agrees."""
    return float(((answers == reference) & (reference >= 0)).mean())


def pareto_front(points: Sequence[tuple[float, float | None]]) -> list[bool]:
    """Which points (cost, gain) no other one beats: none costs at most as much and gains more.

    Nor does one that gains as much cost less. A point without a gain (None, or not a number) is
    beaten.
    """

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    real = [point for point in points if point[1] is not None and np.isfinite(point[1])]
    return [point in real and not any(beats(one, point) for one in real) for point in points]
