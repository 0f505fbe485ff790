"""Mixing on the device: definitions, distributions, and no word between devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from evovit_jax.data import on_device


def compiled(function, **settings):
    return lambda *args: jax.device_get(jax.jit(functools.partial(function, **settings))(*args))


partner = compiled(on_device.partner)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(16, 12, 10, 3)).astype(np.float32)
    return images, np.eye(7, dtype=np.float32)[rng.integers(0, 7, 16)]


def test_normalize():
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    got = on_device.normalize(jnp.asarray(images), mean, std)
    want = (images / 255 - np.array(mean)) / np.array(std)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("rows", [4, 5])
def test_partner_swaps_neighbours(rows):
    got = partner(np.arange(rows, dtype=np.float32))
    assert got.tolist() == [1, 0, 3, 2, 4][:rows]
    assert partner(got).tolist() == list(range(rows))


def test_mixup_is_a_convex_combination(batch):
    images, targets = batch
    mix = compiled(on_device.mix, mixup_alpha=0.8, cutmix_alpha=0.0)
    mixed, labels = mix(jax.random.key(0), images, targets)
    other = partner(targets)
    differ = np.flatnonzero((targets != other).any(-1))[0]
    ratio = float((labels[differ] * targets[differ]).sum())
    assert 0 < ratio < 1
    np.testing.assert_allclose(labels, ratio * targets + (1 - ratio) * other, atol=1e-6)
    np.testing.assert_allclose(mixed, ratio * images + (1 - ratio) * partner(images), atol=1e-6)


def test_cutmix_pastes_a_box_and_weighs_labels_by_its_area(batch):
    images, targets = batch
    other, other_targets = partner(images), partner(targets)
    mix = jax.jit(functools.partial(on_device.mix, mixup_alpha=0.0, cutmix_alpha=1.0))
    for seed in range(20):
        mixed, labels = jax.device_get(mix(jax.random.key(seed), images, targets))
        pasted = (mixed == other).all(-1)
        kept = (mixed == images).all(-1)
        assert (pasted ^ kept).all()
        assert (pasted == pasted[:1]).all()  # one box for the batch
        rows, columns = pasted[0].any(1), pasted[0].any(0)
        assert (pasted[0] == rows[:, None] & columns).all()
        share = 1 - pasted[0].mean()
        want = share * targets + (1 - share) * other_targets
        np.testing.assert_allclose(labels, want, atol=1e-6)


def test_distributions_of_ratio_and_switch():
    def draw(key):
        weights, ratio = on_device._draw_weights(
            key, (1, 32, 32), mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5, prob=0.9
        )
        return weights.max() == weights.min(), ratio[0]

    even, ratio = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(1), 4000))
    untouched = np.asarray(ratio == 1.0)
    # 10 % are not mixed; a few cutmix boxes are empty
    assert 0.08 < untouched.mean() < 0.13
    mixup = np.asarray(even) & ~untouched
    assert abs(mixup.mean() - 0.45) < 0.03
    # Beta(0.8, 0.8) has mean 1/2 and variance 1 / (4 * 2.6)
    values = np.asarray(ratio)[mixup]
    assert abs(values.mean() - 0.5) < 0.03
    assert abs(values.var() - 1 / 10.4) < 0.01


def test_groups_draw_for_themselves_and_prob_zero_changes_nothing(batch):
    images, targets = batch
    options = {"mixup_alpha": 0.8, "cutmix_alpha": 0.0}
    _, labels = compiled(on_device.mix, group=4, **options)(jax.random.key(0), images, targets)
    own = (labels * targets).sum(-1).reshape(4, 4)
    differ = (targets != partner(targets)).any(-1).reshape(4, 4)
    ratios = [row[mask][0] for row, mask in zip(own, differ, strict=True)]
    assert len(set(ratios)) == 4
    same, _ = compiled(on_device.mix, prob=0.0, **options)(jax.random.key(0), images, targets)
    assert (same == images).all()
    with pytest.raises(ValueError, match="groups of 3"):
        compiled(on_device.mix, group=3, **options)(jax.random.key(0), images, targets)


def test_random_erasing_fills_a_rectangle_with_normal_noise():
    images = np.full((400, 24, 20, 3), 9, np.float32)
    got = compiled(on_device.random_erasing, prob=0.25)(jax.random.key(0), images)
    erased = (got != 9.0).all(-1)
    assert (erased == (got != 9.0).any(-1)).all()
    which = erased.any((1, 2))
    assert abs(which.mean() - 0.25) < 0.06
    for mask in erased[which]:
        assert (mask == mask.any(1)[:, None] & mask.any(0)).all()
    share = erased[which].mean((1, 2))
    assert share.min() > 0.01
    assert share.max() < 0.36
    assert abs(share.mean() - (0.02 + 1 / 3) / 2) < 0.03
    noise = got[erased]
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    none = compiled(on_device.random_erasing, prob=0.0)(jax.random.key(0), images)
    assert (none == images).all()


def test_eight_devices_mix_as_one_without_talking():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (16, 8, 8, 3), np.uint8)
    targets = np.eye(5, dtype=np.float32)[rng.integers(0, 5, 16)]

    def prepare(key, images, targets):
        images = on_device.normalize(images, (0.5,) * 3, (0.25,) * 3)
        erase, mix = jax.random.split(key)
        images = on_device.random_erasing(erase, images, prob=0.5)
        return on_device.mix(mix, images, targets, mixup_alpha=0.8, cutmix_alpha=1.0, group=4)

    rows = NamedSharding(mesh, P("data"))
    everywhere = NamedSharding(mesh, P())
    split = jax.jit(prepare, in_shardings=(everywhere, rows, rows), out_shardings=(rows, rows))
    key = jax.random.key(3)
    text = split.lower(key, images, targets).compile().as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text
    for one, eight in zip(
        jax.jit(prepare)(key, images, targets), split(key, images, targets), strict=True
    ):
        np.testing.assert_allclose(one, eight, atol=1e-6)
