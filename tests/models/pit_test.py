"""PiT: pools, class tokens, positions of other sizes, and reductions before and after pools.

That it computes what the official code computes is in parity_test.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import filled, run_model, shapes_of, some_slow

from evovit_jax.errors import UserError
from evovit_jax.models.variables import Skeleton
from evovit_jax.reduction import token_counts
from evovit_jax.reduction.base import AttentionView
from evovit_jax.reduction.tokens import start_tokens

TINY = {
    "image_size": 24,
    "patch_size": 8,
    "stride": 4,  # 5x5 patches, then 3x3: odd sides at the pool
    "embed_dim": (8, 16),
    "depth": (2, 2),
    "num_heads": (2, 4),
    "num_classes": 5,
}


def tiny(reduction=None, *, name="pit_ti_224", **overrides):
    return filled(name, reduction, **{**TINY, **overrides})


def images(*shape):
    return jax.random.normal(jax.random.key(0), (*shape, 3))


def test_patches_overlap_and_pools_take_every_other_place():
    _, out = shapes_of(tiny(), 2, 30, 45, 3)  # the last pixels are unseen
    assert out["aux"]["stage0"].shape == (2, 6, 10, 8)
    assert out["aux"]["stage1"].shape == (2, 3, 5, 16)
    assert out["features"].shape == (2, 1 + 15, 16)
    wide = tiny(image_size=(24, 40))
    assert wide.grid == (5, 9)
    assert wide.pos_embed.shape == (1, 5, 9, 8)
    counts = token_counts.count(tiny().reducer, (5, 5))
    assert [block.entering for block in counts] == [26, 26, 10, 10]


@pytest.mark.slow
def test_a_distilled_network_trains_two_heads_and_averages_them():
    model = tiny(name="pit_ti_distilled_224", drop_path_rate=0.1)
    skeleton = Skeleton(model)
    params, stats = Skeleton.variables(model)

    def loss(params):
        logits, out = skeleton.build(params, stats)(
            images(3, 24, 24), train=True, key=jax.random.key(3)
        )
        return jnp.square(logits).sum() + jnp.square(out.aux_logits["dist"]).sum()

    value, found = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    for name, gradient in found.items():
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0, name


def test_positions_are_interpolated_for_images_of_another_size():
    model = tiny()
    model.pos_embed[...] = jnp.broadcast_to(jnp.arange(8.0), model.pos_embed.shape)
    for part in (model.patch_embed.conv.kernel, model.patch_embed.conv.bias):
        part[...] = jnp.zeros_like(part[...])
    tokens = jax.jit(model.embed)(images(1, 32, 48))
    assert tokens.shape == (1, 1 + 7 * 11, 8)
    np.testing.assert_allclose(tokens[0, 1:], np.tile(np.arange(8.0), (77, 1)), atol=1e-5)


def dense():
    return run_model(tiny(), images(3, 24, 24))


# In the last stage tokens are gone for good; in the others a pool finds the grid whole.
REDUCTIONS = {
    "evit,locations=2:,keep_rate=0.5": 1 + 5 + 1,
    "topk,locations=2:,keep_rate=0.5": 1 + 4,
    "tome,r=0:0:2:1": 1 + 9 - 3,
    "tome,r=6:4:0:0": 10,
    "evit,locations=0:,keep_rate=0.3": 10,
    "evo,keep_rate=0.4": 10,
    "evo,first_block=1,keep_rate=0.4,representative_token=false": 10,
}


@pytest.mark.parametrize("spec", some_slow(REDUCTIONS, {"evo,keep_rate=0.4"}))
def test_reductions_run_within_the_stages(spec):
    model = tiny(spec)
    logits, out = run_model(model, images(3, 24, 24))
    assert out.features.shape == (3, REDUCTIONS[spec], 16)
    assert ("stage1" in out.aux) == (REDUCTIONS[spec] == 10)
    assert out.aux["stage0"].shape == (3, 5, 5, 8)
    assert bool(jnp.isfinite(logits).all())
    assert float(jnp.abs(logits - dense()[0]).max()) > 1e-5
    assert all(token_map.shape == (3, 26) for token_map in out.token_maps)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec", ["evit,keep_rate=1.0", "topk,keep_rate=1.0", "tome,r=0", "evo,keep_rate=1.0"]
)
def test_a_reduction_that_keeps_everything_changes_no_bit(spec):
    logits, out = run_model(tiny(spec), images(3, 24, 24))
    expected, dense_out = dense()
    np.testing.assert_array_equal(logits, expected)
    np.testing.assert_array_equal(out.features, dense_out.features)


def test_evos_scores_go_through_a_pool():
    """The second stage selects by what the first one scored: there is no attention in a pool."""
    model = tiny("evo,first_block=2,keep_rate=0.4")  # the first stage scores, the second selects
    scores = jax.random.uniform(jax.random.key(4), (2, 25))

    def pooled(scores):
        tokens = start_tokens(jnp.zeros((2, 26, 8)), prefix=1, grid=(5, 5)).replace(scores=scores)
        return model.reducer.subsample(tokens, AttentionView(), 2, stage=0).scores

    found, every_other = jax.jit(pooled)(scores), scores.reshape(2, 5, 5)[:, ::2, ::2].reshape(2, 9)
    np.testing.assert_allclose(found.sum(axis=1), scores.sum(axis=1), rtol=1e-5)
    ratio = np.asarray(found / every_other)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-5)


def test_a_method_that_gives_up_the_grid_is_refused():
    with pytest.raises(UserError, match="KMedoids does not run inside a pyramid network"):
        tiny("kmedoids")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"embed_dim": (8, 20)}, "embed_dim 20 is not a multiple of 8, that of the stage before"),
        ({"depth": (1, 1, 1)}, "embed_dim, depth, num_heads must have one member for each stage"),
        ({"stride": 0}, "stride must be a whole number from 1, got 0"),
        ({"image_size": 7}, "an image of 7x7 pixels is smaller than a patch of 8"),
    ],
)
def test_bad_settings_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        tiny(**overrides)
