"""Intervals against closed forms, agreement and Pareto fronts by hand."""

import math

import numpy as np
import pytest

from evovit_jax.benchmarking import figures


def binomial_quantile(n, p, share):
    """The smallest k with P(X <= k) >= share, X binomial."""
    below = 0.0
    for k in range(n + 1):
        below += math.comb(n, k) * p**k * (1 - p) ** (n - k)
        if below >= share:
            return k
    return n


@pytest.mark.parametrize(("hits", "n"), [(427, 500), (20, 40), (1, 12)])
def test_the_interval_of_hits_is_that_of_a_binomial(hits, n):
    """A bootstrap over images of hits and misses draws from it, whatever the images' order."""
    values = np.random.default_rng(1).permutation(np.arange(n) < hits)
    low, high = figures.interval(values)
    assert low == pytest.approx(binomial_quantile(n, hits / n, 0.025) / n, abs=1.01 / n)
    assert high == pytest.approx(binomial_quantile(n, hits / n, 0.975) / n, abs=1.01 / n)
    assert low <= hits / n <= high
    assert figures.interval(values) == (low, high) == figures.interval(np.sort(values))


def test_the_interval_of_any_values_is_that_of_drawing_them_again():
    values = np.random.default_rng(2).normal(size=60)
    drawn = np.random.default_rng(3).choice(values, (20_000, 60)).mean(axis=1)
    found = figures.interval(values)
    np.testing.assert_allclose(found, np.quantile(drawn, (0.025, 0.975)), atol=0.02)
    width = 1.96 * values.std() / math.sqrt(60)  # the normal approximation
    np.testing.assert_allclose(found, values.mean() + np.array([-width, width]), atol=0.03)


def test_pairs_have_a_smaller_interval_than_their_two_sides():
    rng = np.random.default_rng(0)
    one = rng.random(500) < 0.8
    other = one ^ (rng.random(500) < 0.02)  # answers differ on few images
    low, high = figures.interval(one.astype(float) - other)
    ends = figures.interval(one)
    assert high - low < (ends[1] - ends[0]) / 2
    assert low <= one.mean() - other.mean() <= high


def test_equal_values_leave_no_doubt_and_another_seed_draws_anew():
    assert figures.interval(np.ones(7)) == (1.0, 1.0)
    values = np.random.default_rng(2).normal(size=60)
    assert figures.interval(values, seed=1) != figures.interval(values)


def test_agreement_counts_equal_answers_of_the_reference():
    reference = np.array([3, 1, -1, 2, 0])
    assert figures.agreement(reference, reference) == 0.8  # no answer agrees with nothing
    assert figures.agreement(np.array([3, 0, -1, -1, 0]), reference) == 0.4


def test_the_front_is_what_nothing_beats():
    points = [(1.0, 80.0), (0.8, 79.0), (0.8, 78.0), (0.9, 79.0), (0.5, None), (0.4, float("nan"))]
    assert figures.pareto_front(points) == [True, True, False, False, False, False]
    # The same point twice is on it twice; a dearer one with the same gain is not.
    assert figures.pareto_front([(1.0, 5.0), (1.0, 5.0), (1.1, 5.0)]) == [True, True, False]
    assert figures.pareto_front([]) == []
