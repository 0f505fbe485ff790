"""Patch Slimming against NumPy: a network with masks, impact scores, and the way to the masks.

There is no code of the authors, so both references are written from the paper's equations.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import filled, run_model

from evovit_jax import flops
from evovit_jax.errors import UserError
from evovit_jax.models import abstract_model
from evovit_jax.reduction import slimming_masks
from evovit_jax.reduction.base import Backbone
from evovit_jax.reduction.patch_slimming import PatchSlimming, PatchSlimmingFields, from_centre
from evovit_jax.reduction.slimming_masks import impact_scores, masks_of

TINY = {"image_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 3}
NAME, KEPT = "deit_tiny_patch16_224", (11, 6, 0)
BACKBONE = Backbone(3, (12,), (3,), (2, 3), 1, (3,))


def batch(images):
    return jnp.asarray(images, jnp.float32), jnp.zeros(len(images), jnp.int32)


def normed(x, norm):
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    return x * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])


def linear(x, layer):
    return x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...])


def with_masks(model, x, masks):
    """The tokens of one image after all blocks, which compute all rows and keep those of masks."""
    there = np.ones(len(x), bool)
    for block, mask in zip(model.blocks, masks, strict=True):
        parts = linear(normed(x, block.norm1), block.attn.qkv).reshape(len(x), 3, 3, -1)
        q, k, v = parts.transpose(1, 2, 0, 3)
        logits = np.where(there, q @ k.transpose(0, 2, 1) * q.shape[-1] ** -0.5, -np.inf)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        x = x + linear((weights @ v).transpose(1, 0, 2).reshape(len(x), -1), block.attn.proj)
        hidden = linear(normed(x, block.norm2), block.mlp.fc1)
        hidden *= (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
        x, there = x + linear(hidden, block.mlp.fc2), mask
    return x


def test_a_block_makes_the_tokens_of_its_mask():
    model = filled(NAME, f"patch_slimming,kept={':'.join(map(str, KEPT))}", num_classes=5, **TINY)
    order = np.random.default_rng(1).permutation(16)
    model.reducer.patch_order.set_value(jnp.asarray(order, jnp.float32))
    image = np.random.default_rng(2).normal(size=(1, 16, 16, 3)).astype(np.float32)
    logits, out = run_model(model, image)
    masks = [np.isin(np.arange(17), [0, *(order[:kept] + 1)]) for kept in KEPT]
    tokens = np.asarray(nnx.jit(lambda m, x: m.embed(x))(model, image)[0], np.float64)
    wanted = linear(normed(with_masks(model, tokens, masks)[0], model.norm), model.head)
    np.testing.assert_allclose(logits[0], wanted, atol=1e-4)
    for block, mask in enumerate(masks):
        np.testing.assert_array_equal(np.asarray(out.token_maps[block][0]) >= 0, mask)
    np.testing.assert_array_equal(out.token_maps[0][0][order + 1][:11], np.arange(1, 12))


def test_gmacs_are_those_of_queries_of_the_tokens_that_are_made():
    model = abstract_model(NAME, f"patch_slimming,kept={':'.join(map(str, KEPT))}", **TINY)
    d, before, total = 12, 17, 16 * 4 * 4 * 3 * 12 + 12 * 1000
    for made in (kept + 1 for kept in KEPT):
        total += 2 * before * d * d + made * d * d + 2 * before * made * d  # keys, values; queries
        total += made * d * d + 8 * made * d * d
        before = made
    assert flops.gmacs(model) * 1e9 == pytest.approx(total)


def test_impact_scores_are_sums_over_all_choices_of_heads():
    rng = np.random.default_rng(0)
    depth, heads, n = 4, 2, 5
    maps = rng.uniform(size=(2, depth, heads, n, n))
    inputs = rng.normal(size=(2, depth, n, 3))
    masks = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 1], [1, 1, 0, 0, 1], [1, 0, 0, 0, 0]], bool)
    wanted = np.zeros((depth, n))
    for image, t in itertools.product(range(2), range(depth - 1)):
        for choice in itertools.product(range(heads), repeat=depth - t):
            down = np.eye(n)
            for block in range(depth - 1, t, -1):
                down = down @ np.diag(masks[block]) @ maps[image, block, choice[block - t]]
            up = maps[image, t, choice[0]] @ np.abs(inputs[image, t])
            wanted[t] += (down**2).sum(axis=0) * (up**2).sum(axis=1) / 2
    found = jax.jit(impact_scores)(*(jnp.asarray(x, jnp.float32) for x in (maps, inputs)), masks)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_masks_grow_by_the_best_positions_until_the_next_block_is_near(monkeypatch):
    """Block 1 is near with four patches, block 0 with five; positions 5 and 0 impact most."""
    scores = np.array([[0, 3, 1, 9, 2, 4, 8], [0, 6, 1, 2, 3, 4, 9], [0] * 7], float)
    seen = []

    def look(masks, images):
        seen.append(masks.copy())
        near = [1.0, masks[0].sum() >= 6, masks[1].sum() >= 5]
        return scores, np.array([[0.01 if good else 0.5 for good in near], [2.0] * 3])

    monkeypatch.setattr(slimming_masks, "watcher", lambda model, backbone: look)
    batches = [batch(np.zeros((1, 8, 12, 3)))] * 2
    order, kept = masks_of(nnx.Module(), batches, BACKBONE, tolerance=0.01, step=2)
    assert kept == (6, 4, 0)
    assert order.tolist() == [5, 0, 4, 3, 2, 1]
    assert len(seen) == 2 * (1 + 2 + 1)
    assert seen[0].sum(axis=1).tolist() == [7, 7, 1]
    assert seen[-1].sum(axis=1).tolist() == [7, 5, 1]


@pytest.mark.slow
@pytest.mark.parametrize(("tolerance", "kept"), [(1e9, (6, 3, 0)), (1e-12, (16, 16, 0))])
def test_a_calibrated_network_is_as_near_as_was_asked_for(tolerance, kept):
    model = filled(NAME, f"patch_slimming,tolerance={tolerance},step=3", num_classes=5, **TINY)
    images = jnp.asarray(np.random.default_rng(2).normal(size=(4, 16, 16, 3)), jnp.float32)
    dense = filled(NAME, num_classes=5, **TINY)
    found = model.reducer.calibrated(dense, [batch(images)])
    assert found.fields.kept == kept
    assert sorted(found.patch_order[...].tolist()) == list(range(16))
    model.reducer = found
    off = np.abs(run_model(model, images)[0] - run_model(dense, images)[0]).max()
    assert (off < 1e-4) == (tolerance < 1)


def test_settings_that_do_not_fit_are_refused():
    for fields, message in (
        ({"kept": (4, 2)}, "kept has 2 members for 3 blocks"),
        ({"kept": (4, 5, 0)}, "must fall, from 6 patches at most, got 4:5:0"),
        ({"kept": (7, 5, 0)}, "must fall"),
    ):
        with pytest.raises(UserError, match=message):
            PatchSlimmingFields(**fields).check(BACKBONE)
    pooled = Backbone(3, (12,), (3,), (2, 3), 1, (3,), pools_patches=True)
    with pytest.raises(UserError, match="must not end with 0 where patches are classified"):
        PatchSlimmingFields(kept=(4, 2, 0)).check(pooled)
    reducer = PatchSlimming(pooled, PatchSlimmingFields(keep_rate=0.5), rngs=nnx.Rngs(0))
    assert reducer.fields.counts(pooled) == (4, 3, 3)
    with pytest.raises(UserError, match="this network classifies its patches"):
        reducer.calibrated(nnx.Module(), [])


def test_the_first_patches_are_those_in_the_middle():
    assert from_centre((3, 4)).tolist() == [5, 6, 1, 2, 9, 10, 4, 7, 0, 3, 8, 11]
