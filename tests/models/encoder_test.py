"""The encoders: what the golden files do not show of sizes, reductions, heads and errors.

Also tests evovit_jax/models/encoder_block.py, glu.py, attention_pool.py and positions.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import filled, run_model, some_slow

from evovit_jax.errors import UserError
from evovit_jax.models import abstract_model, create_model
from evovit_jax.models.positions import cubic_steps, resize_positions
from evovit_jax.reduction import list_reductions
from evovit_jax.reduction.base import AttentionRequest
from evovit_jax.reduction.tokens import start_tokens
from evovit_jax.weights import from_torch, to_torch

TINY = {"image_size": 20, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
REGISTERS, SIGLIP = "vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224.v2_webli"
DINOV3, PE = "vit_small_patch16_dinov3", "vit_pe_core_tiny_patch16_384"
PYRAMID = {"image_size": 64, "embed_dim": (16, 24), "num_heads": (2, 2), "depth": (1, 2)}
# Fields that are of the real size.
OWN = {
    PE: {"rope_reference": 5, "num_classes": 7, "map_heads": 2},
    DINOV3: {"num_heads": 2},
}


def tiny(name, reduction=None, **overrides):
    return filled(name, reduction, **{**TINY, **OWN.get(name, {}), **overrides})


def images(batch=2, height=20, width=20):
    return jax.random.normal(jax.random.key(0), (batch, height, width, 3))


@pytest.mark.parametrize("name", some_slow([REGISTERS, SIGLIP, DINOV3, PE], {PE}))
def test_images_of_any_grid_pass(name):
    model = tiny(name, "tome,r=2")
    logits, out = run_model(model, images(1, 12, 32))
    assert out.grid == (3, 8)
    assert out.features.shape[1] == model.prefix + 24 - 4
    assert bool(jnp.isfinite(logits).all())


def test_without_classes_the_logits_are_the_pooled_features():
    logits, out = run_model(tiny(REGISTERS, depth=1), images())
    np.testing.assert_array_equal(logits, out.pooled)
    np.testing.assert_array_equal(out.pooled, out.features[:, 0])
    with_head = tiny(PE, depth=1)
    logits, out = run_model(with_head, images())
    np.testing.assert_allclose(logits, with_head.head(out.pooled), atol=1e-5)
    plain = filled("deit_tiny_patch16_224", num_classes=0, **TINY | {"depth": 1})
    logits, out = run_model(plain, images())
    np.testing.assert_array_equal(logits, out.features[:, 0])


@pytest.mark.parametrize("name", some_slow([DINOV3, PE], {PE}))
def test_rotary_positions_follow_the_tokens_that_stay(name):
    """Tokens that left and tokens that nothing attends to make the same of the others."""
    kept, out = run_model(tiny(name, "heuristic,keep_rate=0.6"), images())
    masked, _ = run_model(tiny(name, "heuristic,keep_rate=0.6,masked=true", pool="token"), images())
    kept, _ = run_model(tiny(name, "heuristic,keep_rate=0.6", pool="token"), images())
    assert out.features.shape[1] < 25
    np.testing.assert_allclose(kept, masked, atol=1e-4)


def test_a_merged_token_has_the_place_of_its_member_of_b():
    model = tiny(DINOV3, "tome,r=3", depth=1)

    @jax.jit
    def first_merge(images):
        tokens = start_tokens(model.embed(images), prefix=5, grid=(5, 5), places=True)
        _, view = model.blocks[0].attend(0, tokens, model.reducer.attention_request(0, tokens))
        return model.reducer.after_attention(0, tokens, view)

    assert model.reducer.backbone.rotary
    after = first_merge(images())
    assert after.place.shape == (2, 27)
    for image in range(2):
        places, source = np.asarray(after.place[image]), np.asarray(after.source[image])
        assert len(set(places)) == 27
        for j, place in enumerate(places):
            held = set(np.flatnonzero(source == j))
            assert place in held  # of the tokens that it holds one, and of several B's
            assert len(held) == 1 or place % 2 == 1
        np.testing.assert_array_equal(places[:5], range(5))


ROTARY_REFUSED = {"dpcknn", "patchmerger", "prune_and_merge", "sinkhorn", "sit"}
ROTARY_REFUSED |= {"tokenlearner"}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(name, method, marks=[] if (name, method) in quick else [pytest.mark.slow])
        for quick in [{(DINOV3, "evit"), (SIGLIP, "evo")}]
        for name in (REGISTERS, SIGLIP, DINOV3, PE)
        for method in list_reductions()
    ],
)
def test_every_method_runs_or_says_why_not(name, method):
    if method in ROTARY_REFUSED and name in (DINOV3, PE):
        with pytest.raises(UserError, match="have no place"):
            tiny(name, method)
        return
    if (name, method) == (SIGLIP, "ia_red2"):
        with pytest.raises(UserError, match="has no class token"):
            tiny(name, method)
        return
    if method == "cropr" and name != PE:
        with pytest.raises(UserError, match="has no classes"):
            tiny(name, method)
        return
    spec = "diffrate,prune_kept=21:13,merge_kept=18:9" if method == "diffrate" else method
    model = create_model(name, spec, **{**TINY, **OWN.get(name, {})})
    logits, out = run_model(model, images())
    assert bool(jnp.isfinite(logits).all())
    # Class token and registers are in their places, untouched by the method.
    first = np.broadcast_to(np.arange(model.prefix), (2, model.prefix))
    np.testing.assert_array_equal(out.token_maps[-1][:, : model.prefix], first)
    others = np.asarray(out.token_maps[-1][:, model.prefix :])
    assert ((others < 0) | (others >= model.prefix)).all()


def test_scores_by_name_are_what_they_say():
    model = tiny(SIGLIP)
    tokens = start_tokens(model.embed(images()), prefix=0, grid=(5, 5))
    block = model.walked_stages()[0][1]

    def row(score):
        wanted = frozenset({"class_row", "weights", "keys"})
        request = AttentionRequest(needs=wanted, score=score)
        after, view = jax.jit(lambda tokens: block.attend(1, tokens, request))(tokens)
        return after, view, np.asarray(view.class_row)

    _, view, received = row("received")
    np.testing.assert_allclose(received, view.weights.mean(axis=2), atol=1e-7)
    after, _, asked = row("map")
    keys = model.attn_pool.kv(model.norm(after.x))[..., :24].reshape(2, 25, 3, 8)
    query = model.attn_pool.q(model.attn_pool.latent[...]).reshape(3, 8)
    logits = jnp.einsum("hc,bnhc->bhn", query, keys) * 8**-0.5
    np.testing.assert_allclose(asked, jax.nn.softmax(logits, axis=-1), atol=1e-5)
    _, view, norms = row("key_norm")
    expected = np.linalg.norm(view.keys, axis=-1)
    np.testing.assert_allclose(norms, expected / expected.sum(-1, keepdims=True), atol=1e-6)
    after, _, shift = row("shift")
    moved = np.linalg.norm(after.x - tokens.x, axis=-1)
    np.testing.assert_allclose(shift[:, 0], moved / moved.sum(-1, keepdims=True), atol=1e-5)


def test_the_default_score_is_one_that_the_network_learned():
    def first(name, **others):
        return abstract_model(name, **{**TINY, **others}).reducer.backbone.ranking[0]

    assert first(REGISTERS) == "class"
    assert first(SIGLIP) == "received"
    assert first("vit_base_patch16_224.mae", pool="avg", num_classes=5) == "received"
    with pytest.raises(UserError, match=r"'class' is not to be had .* it has received, map"):
        tiny(SIGLIP, "topk,score=class")
    with pytest.raises(UserError, match="'map' is not to be had"):
        tiny(REGISTERS, "evit,score=map")
    with pytest.raises(UserError, match="'received' is not to be had"):
        create_model("evo_levit_128s", "evit,score=received", **PYRAMID)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"pool": "max"}, "pool must be one of"),
        ({"pool": "token", "class_token": False}, "pool=token needs a class token"),
        ({"activation": "relu"}, "activation must be one of"),
        ({"rope": "axial", "embed_dim": 18, "num_heads": 3}, "heads of a multiple of 4 channels"),
        ({"distilled": True}, "has no distillation token"),
        ({"reg_tokens": -1}, "reg_tokens must be 0 or more"),
        ({"resizing": "bilinear"}, "resizing must be one of"),
        ({"pool": "map", "map_heads": 7}, "does not divide into map_heads 7"),
    ],
)
def test_bad_settings_say_what_is_wrong(overrides, message):
    with pytest.raises(UserError, match=message):
        tiny(REGISTERS, **overrides)


def test_upstreams_steps_are_cubic_and_add_up():
    steps = cubic_steps(5, 7)
    np.testing.assert_allclose(steps.sum(axis=1), 1, atol=1e-6)
    # Where scale and offset cancel, places fall on themselves.
    positions = jnp.arange(50.0).reshape(1, 25, 2)
    np.testing.assert_array_equal(resize_positions(positions, (5, 5), (5, 5), "dinov2"), positions)
    other = resize_positions(positions, (5, 5), (7, 7), "dinov2")
    assert float(jnp.abs(other - resize_positions(positions, (5, 5), (7, 7))).max()) > 0.1


def test_weights_of_another_size_are_resized_by_the_models_rule():
    tensors = to_torch(tiny("vit_small_patch14_dinov2"))
    for rule in ("antialias", "dinov2"):
        larger = tiny("vit_small_patch14_dinov2", image_size=28, resizing=rule)
        (note,) = from_torch(larger, tensors)
        assert "pos_embed" in note
        expected = resize_positions(jnp.asarray(tensors["pos_embed"][:, 1:]), (5, 5), (7, 7), rule)
        np.testing.assert_allclose(larger.pos_embed[:, 1:], expected, atol=1e-6)
    with pytest.raises(UserError, match=r"allow_missing='head/\.\*'"):
        from_torch(tiny("vit_small_patch14_dinov2", num_classes=4), tensors)


def test_pooling_counts_merged_tokens_by_size_and_masked_ones_not_at_all():
    model = tiny(SIGLIP)
    x = model.embed(images())
    tokens = start_tokens(x, prefix=0, grid=(5, 5))
    twice = tokens.replace(x=jnp.concatenate([x, x[:, :3]], axis=1))
    sizes = jnp.broadcast_to(jnp.where(jnp.arange(25) < 3, 2.0, 1.0), (2, 25))
    _, doubled = model.classify(twice)
    _, counted = model.classify(tokens.replace(sizes=sizes))
    np.testing.assert_allclose(counted.pooled, doubled.pooled, atol=1e-5)
    mask = jnp.broadcast_to(jnp.arange(28) < 25, (2, 28))
    _, masked = model.classify(twice.replace(mask=mask))
    np.testing.assert_allclose(masked.pooled, model.classify(tokens)[1].pooled, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_keeps_pooled_features_and_scores_in_32_bits():
    model = tiny(PE, "evit,score=map", dtype="bfloat16")
    logits, out = run_model(model, images())
    assert (logits.dtype, out.pooled.dtype) == (jnp.float32, jnp.float32)
    assert out.features.dtype == jnp.bfloat16
    exact, _ = run_model(tiny(PE, "none"), images())
    half, _ = run_model(tiny(PE, "none", dtype="bfloat16"), images())
    np.testing.assert_allclose(half, exact, atol=0.05 * float(jnp.abs(exact).max()))


def test_what_follows_from_other_settings_does_so_in_a_copy():
    config = abstract_model("vit_base_patch16_224.mae", **TINY).config
    assert not config.norm_after_pool
    assert dataclasses.replace(config, pool="avg").norm_after_pool
    assert dataclasses.replace(config, image_size=40).reference_grid == (10, 10)
    assert abstract_model(PE, **TINY, **OWN[PE]).config.temperature == 10000
