"""ConViT's own parts, and blocks on a grid; that it computes what timm computes is parity's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import normal, run_model

import evovit_jax
from evovit_jax.errors import UserError
from evovit_jax.models.convit import ConViTConfig, GatedPositionalAttention, relative_places
from evovit_jax.models.grid_block import through_blocks
from evovit_jax.reduction.tokens import start_tokens

TINY = {
    "image_size": 16,
    "patch_size": 4,
    "embed_dim": 12,
    "depth": 3,
    "num_heads": 4,
    "local_up_to_layer": 1,
    "num_classes": 5,
}


def tiny(reduction=None, **overrides):
    return evovit_jax.create_model("convit_tiny", reduction, **{**TINY, **overrides}, seed=1)


def images(rows=16, columns=16):
    return jax.random.normal(jax.random.key(0), (2, rows, columns, 3))


def test_distances_are_from_the_query_to_the_key():
    places = relative_places((2, 3))
    assert places.shape == (6, 6, 3)
    assert places[0, 5].tolist() == [2, 1, 5]  # from the first place two right and one down
    assert places[4, 2].tolist() == [1, -1, 2]


def test_new_heads_look_at_the_places_around_one():
    settings = {**TINY, "num_heads": 9, "embed_dim": 18}
    config = ConViTConfig(**settings, locality_strength=5.0)
    attention = GatedPositionalAttention(config, rngs=nnx.Rngs(0))
    centre = 12  # of 5 x 5 places
    logits = nnx.jit(lambda a: a.pos_proj(jnp.asarray(relative_places((5, 5))[centre])))(attention)
    weights = np.exp(logits) / np.exp(logits).sum(axis=0)
    around = {centre + 5 * y + x for y in (-1, 0, 1) for x in (-1, 0, 1)}
    assert set(weights.argmax(axis=0).tolist()) == around
    assert float(weights.max(axis=0).min()) > 0.95


def test_a_closed_gate_leaves_attention_by_content_and_an_open_one_by_place():
    attention = GatedPositionalAttention(ConViTConfig(**TINY), rngs=nnx.Rngs(0))

    @nnx.jit
    def by_hand(attention, x):
        value = attention.v(x).reshape(1, 6, 4, 3).swapaxes(1, 2)
        q, k = jnp.moveaxis(attention.qk(x).reshape(1, 6, 2, 4, 3), (2, 3), (0, 2))
        content = jax.nn.softmax(q @ k.swapaxes(2, 3) * 3**-0.5, axis=-1)
        place = jnp.moveaxis(jax.nn.softmax(attention.pos_proj(relative_places((2, 3))), 1), 2, 0)
        mixed = ((weights @ value).swapaxes(1, 2) for weights in (content, place[None]))
        return [attention.proj(x.reshape(1, 6, 12)) for x in mixed]

    x, run = normal(1, 6, 12), nnx.jit(lambda attention, x: attention(x, (2, 3)))
    for gate, wanted in zip((-30.0, 30.0), by_hand(attention, x), strict=True):
        attention.gating_param[...] = jnp.full((4,), gate)
        np.testing.assert_allclose(run(attention, x), wanted, atol=1e-6)


@pytest.mark.slow
def test_blocks_on_a_grid_draw_by_their_numbers():
    model = tiny(drop_path_rate=0.5, local_up_to_layer=2)
    x = jax.random.normal(jax.random.key(1), (8, 16, 12))
    tokens = start_tokens(x, prefix=0, grid=(4, 4), train=True, key=jax.random.key(2))
    blocks = list(model.blocks)[1:2]
    first, again, other = (through_blocks(blocks, tokens, first=n).x for n in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_tokens_leave_in_the_plain_blocks_only():
    model = tiny("evit,keep_rate=0.5,fuse=false,locations=0:")
    _, out = run_model(model, images())
    assert out.aux["last_local"].shape == (2, 16, 12)
    assert out.features.shape == (2, 1 + 8, 12)
    assert len(out.token_maps) == 2 + 1
    with pytest.raises(UserError, match=r"locations must be increasing block numbers in 0\.\.1"):
        tiny("evit,locations=2:")


@pytest.mark.slow
def test_it_learns():
    model = tiny(drop_path_rate=0.2, remat="full")

    def loss(model):
        return jnp.square(model(images(), train=True, key=jax.random.key(3))[0]).sum()

    gradients = nnx.jit(nnx.grad(loss))(model)
    found = {name: np.array(g) for name, g in nnx.to_flat_state(nnx.state(gradients))}
    assert all(np.isfinite(g).all() for g in found.values())
    assert all(np.abs(g).max() > 0 for path, g in found.items() if "gating_param" in path)


@pytest.mark.slow
def test_other_image_sizes_work():
    logits, out = run_model(tiny(), images(24, 16))
    assert logits.shape == (2, 5)
    assert out.features.shape == (2, 1 + 6 * 4, 12)


def test_all_but_the_last_two_blocks_are_local_unless_said():
    assert ConViTConfig().local_blocks == 10
    assert ConViTConfig(depth=3).local_blocks == 1
    assert ConViTConfig(depth=3, local_up_to_layer=0).local_blocks == 0


def test_what_it_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"local_up_to_layer must be in 0\.\.2, got 3"):
        tiny(local_up_to_layer=3)
    with pytest.raises(UserError, match="distilled of a ConViT is False, got True"):
        tiny(distilled=True)
