"""Adaptive token sampling against a loop over sampling points; padding that changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import evovit_jax
from evovit_jax.reduction.at_locations import LocatedFields
from evovit_jax.reduction.ats import ATS, places, sampled
from evovit_jax.reduction.base import Backbone
from evovit_jax.reduction.tokens import start_tokens

POINTS = np.array([0.1, 0.3, 0.5, 0.7, 0.9], np.float32)


@pytest.mark.parametrize("masked", [False, True])
def test_takes_the_nearest_token_of_every_point_once(masked):
    scores = jax.nn.softmax(2 * jax.random.normal(jax.random.key(0), (4, 9)))
    valid = jnp.arange(9)[None] < jnp.array([9, 7, 4, 1])[:, None] if masked else None
    taken = sampled(jnp.where(valid, scores, 0.0) if masked else scores, valid, POINTS)
    index, filled = places(taken, 5)
    for b in range(4):
        allowed = [j for j in range(9) if not masked or valid[b, j]]
        cumulative = np.cumsum([scores[b, j] if j in allowed else 0 for j in range(9)])
        want = {min(allowed, key=lambda j, p=p: (abs(cumulative[j] - p), j)) for p in POINTS}
        assert np.flatnonzero(taken[b]).tolist() == sorted(want)
        assert index[b][: len(want)].tolist() == sorted(want)
        assert filled[b].tolist() == [True] * len(want) + [False] * (5 - len(want))


def test_points_and_places_are_those_of_the_study():
    backbone = Backbone(12, (12,), (3,), (14, 14), 1, (12,))
    reducer = ATS(backbone, LocatedFields(), rngs=nnx.Rngs(0))
    tokens = start_tokens(jnp.zeros((1, 197, 12)), prefix=1, grid=(14, 14))
    points = [reducer.points(location, tokens) for location in range(3)]
    assert [len(p) for p in points] == [reducer.count(i, tokens) for i in range(3)]
    for p, kept in zip(points, (137, 96, 67), strict=True):
        k = kept + 1
        assert len(p) in (k - 1, k)
        np.testing.assert_allclose(p, (2 * np.arange(len(p)) + 1) / (2 * k), rtol=1e-6)


def test_an_image_gets_the_same_logits_alone_and_in_a_batch():
    """Images keep different numbers of tokens; the places that are over count nowhere."""
    model = evovit_jax.create_model(
        "evo_deit_tiny_patch16_224",  # a pooled head, which must leave them out as well
        "ats,keep_rate=0.6",
        image_size=16,
        patch_size=2,
        embed_dim=12,
        depth=4,
        num_heads=3,
        num_classes=5,
    )
    for block in model.blocks:  # attention that prefers some tokens
        block.attn.qkv.kernel[...] = block.attn.qkv.kernel[...] * 30
    images = 3 * jax.random.normal(jax.random.key(2), (4, 16, 16, 3))
    run = jax.jit(model)
    logits, out = run(images)
    kept = (np.asarray(out.token_maps[-1]) >= 0).sum(axis=1)
    assert len(set(kept.tolist())) > 1
    alone = jnp.concatenate([run(images[i : i + 1])[0] for i in range(4)])
    np.testing.assert_allclose(logits, alone, atol=1e-5)
