"""Means and intervals in groups, against those over all images."""

import numpy as np

from evovit_jax.benchmarking import figures, group_means
from evovit_jax.benchmarking.group_means import GroupMeans


def test_few_images_are_groups_of_their_own_and_what_is_no_number_does_not_count():
    values = np.array([[1.0, 4.0], [2.0, np.nan], [6.0, 5.0], [3.0, 9.0]])
    means = GroupMeans(4)
    means.add("x", np.array([0, 2]), values[[0, 2]])
    means.add("x", np.array([1, 3]), values[[1, 3]])
    np.testing.assert_allclose(means.mean("x"), [3, 6])
    assert means.count("x") == 3
    assert means.interval("x") == figures.interval(values[[0, 2, 3], 1])
    assert "x" in means
    assert "y" not in means


def test_what_no_image_has_is_no_number():
    means = GroupMeans(2)
    means.add("x", np.arange(2), np.full(2, np.nan))
    assert np.isnan(means.mean("x"))
    assert means.count("x") == 0


def test_many_images_take_no_more_memory_and_have_nearly_the_same_interval(monkeypatch):
    groups, count = 128, 2560
    monkeypatch.setattr(group_means, "MOST_GROUPS", groups)
    values = np.random.default_rng(0).normal(size=count)
    means = GroupMeans(count)
    for part in np.split(np.arange(count), 16):
        means.add("x", part, values[part])
    assert means._sums["x"][0].shape == (groups,)
    np.testing.assert_allclose(means.mean("x"), values.mean())
    low, high = means.interval("x")
    error = 1.96 / count**0.5
    np.testing.assert_allclose(
        [low, high], [values.mean() - error, values.mean() + error], atol=0.15 * error
    )
