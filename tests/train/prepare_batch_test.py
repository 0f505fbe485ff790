"""What the device makes of a batch."""

import jax
import numpy as np
from tiny import tiny_config

from evovit_jax.train.prepare_batch import prepare

BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8),
    "label": np.arange(8, dtype=np.int32),
}


def prepared(seed=0, **fields):
    off = {"augment__mixup": 0.0, "augment__cutmix": 0.0, "augment__erasing_prob": 0.0}
    config = tiny_config(**{**off, "loss__label_smoothing": 0.0, **fields})
    made = jax.jit(lambda key, batch: prepare(config, key, batch, 10))
    return jax.device_get(made(jax.random.key(seed), BATCH))


def test_normalised_and_one_hot():
    images, targets = prepared(mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    pixels = BATCH["image"] / 255
    np.testing.assert_allclose(
        images, (pixels - [0.5, 0.25, 0.0]) / [0.5, 1.0, 2.0], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(targets, np.eye(10)[:8])


def test_smoothing():
    assert np.isclose(prepared(loss__label_smoothing=0.1)[1].max(), 0.91)


def test_each_field_of_the_device_changes_something():
    plain = prepared()
    erased = prepared(augment__erasing_prob=1.0)
    assert (erased[0] != plain[0]).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(erased[1], plain[1])
    mixed = prepared(augment__mixup=0.8)
    assert ((mixed[1] > 0).sum(axis=1) == 2).all()
    cut = prepared(augment__cutmix=1.0)
    assert not np.array_equal(cut[0], mixed[0])
    unmixed = prepared(augment__mixup=0.8, augment__mix_prob=0.0)
    np.testing.assert_array_equal(unmixed[0], plain[0])
    only_cut = prepared(augment__mixup=0.8, augment__cutmix=1.0, augment__mix_switch_prob=1.0)
    only_mix = prepared(augment__mixup=0.8, augment__cutmix=1.0, augment__mix_switch_prob=0.0)
    assert not np.array_equal(only_cut[0], only_mix[0])


def test_a_group_shares_its_draw():
    share = prepared(augment__mixup=0.8)[1].max(axis=1)
    assert np.ptp(share) < 1e-6
    in_pairs = prepared(augment__mixup=0.8, augment__mix_group=2)[1].max(axis=1)
    assert len(np.unique(np.round(in_pairs, 5))) > 1
