"""The order of a run is a function of (seed, position)."""

import numpy as np
import pytest

from evovit_jax.data.sampler import Sampler, batch_layout, epoch_length, example_keys

PINNED = [5, 7, 6, 9, 4, 8, 1, 0, 2, 3]
PINNED_KEY = 17994552160745959575


def test_every_epoch_is_another_permutation():
    sampler = Sampler(37, seed=3)
    epochs, indices, views = sampler(np.arange(3 * 37))
    orders = indices.reshape(3, 37)
    assert (epochs == np.repeat(np.arange(3), 37)).all()
    assert (views == 0).all()
    for order in orders:
        assert sorted(order) == list(range(37))
    assert len({tuple(order) for order in orders}) == 3
    assert (Sampler(37, seed=4)(np.arange(37))[1] != orders[0]).any()


def test_positions_may_be_asked_in_any_order():
    positions = np.array([90, 3, 40, 36, 37])
    whole = Sampler(37, seed=3)(np.arange(111))
    some = Sampler(37, seed=3)(positions)
    for a, b in zip(whole, some, strict=True):
        assert (a[positions] == b).all()


def test_the_order_is_pinned():
    # A change here is a change of the data of every run that is resumed.
    assert Sampler(10, seed=0)(np.arange(10))[1].tolist() == PINNED
    zero = np.zeros(1, np.int64)
    assert example_keys(1, zero, zero + 2, zero).tolist() == [PINNED_KEY]


def test_keys_differ_in_every_part():
    zero = np.zeros(1, np.int64)
    keys = {
        int(example_keys(seed, zero + epoch, zero + index, zero + view)[0])
        for seed in range(3)
        for epoch in range(3)
        for index in range(3)
        for view in range(3)
    }
    assert len(keys) == 81


@pytest.mark.parametrize(
    ("examples", "repeats", "length"),
    [(1_281_167, 1, 1_281_167), (1_281_167, 3, 1_281_024), (256, 3, 256), (255, 3, 255)],
)
def test_length_rule(examples, repeats, length):
    # DeiT: int(floor(len(dataset) // 256 * 256 / num_replicas)) on each replica
    assert epoch_length(examples, repeats) == length


def test_repeated_augmentation_shows_a_third_of_the_images_three_times():
    sampler = Sampler(600, seed=0, repeats=3)
    epochs, indices, views = sampler(np.arange(2 * 512))
    assert epochs.tolist() == [0] * 512 + [1] * 512
    images, counts = np.unique(indices[:512], return_counts=True)
    assert len(images) == 171  # 512 / 3, the last image is shown twice
    assert sorted(counts)[:2] == [2, 3]
    assert set(views) == {0, 1, 2}
    assert (indices[:3] == indices[0]).all()


def test_views_of_an_image_are_spread_over_the_batch():
    layout = batch_layout(12, 3)
    assert sorted(layout) == list(range(12))
    images = layout // 3
    assert images.tolist() == [0, 1, 2, 3] * 3
    assert batch_layout(4, 1).tolist() == [0, 1, 2, 3]
