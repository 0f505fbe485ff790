"""VOLO's own parts and class attention; that it computes what timm computes is parity's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import run_model

import evovit_jax
from evovit_jax.errors import UserError
from evovit_jax.models.class_attention import ClassAttention
from evovit_jax.models.volo import OutlookAttention, VOLOConfig, class_bias, mean_of_cells
from evovit_jax.reduction.tokens import start_tokens

TINY = {
    "image_size": 32,
    "patch_size": 4,
    "layers": (1, 2),
    "embed_dims": (6, 12),
    "num_heads": (2, 3),
    "stem_hidden_dim": 4,
    "num_classes": 5,
}


def tiny(reduction=None, **overrides):
    return evovit_jax.create_model("volo_d1_224", reduction, **{**TINY, **overrides}, seed=1)


def images(rows=32, columns=32):
    return jax.random.normal(jax.random.key(0), (2, rows, columns, 3))


def test_odd_ends_of_a_map_are_cells_of_their_own():
    x = np.arange(15.0).reshape(1, 3, 5, 1)
    means = np.array(mean_of_cells(jnp.asarray(x)))[0, :, :, 0]
    assert means.tolist() == [[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]


def test_outlook_attention_is_what_a_loop_over_windows_computes():
    rows, columns = grid = (3, 5)  # both odd: the golden file has an even map
    config = VOLOConfig(**TINY, qkv_bias=True).of_stage(0)
    attention = OutlookAttention(config, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (1, rows * columns, 6))
    values = np.zeros((rows + 2, columns + 2, 2, 3))
    values[1:-1, 1:-1] = np.array(attention.v(x)).reshape(rows, columns, 2, 3)
    centres = np.array(attention.attn(mean_of_cells(x.reshape(1, rows, columns, 6))))[0]
    folded = np.zeros_like(values)
    for y in range(centres.shape[0]):
        for z in range(centres.shape[1]):
            window = (slice(2 * y, 2 * y + 3), slice(2 * z, 2 * z + 3))
            logits = centres[y, z].reshape(2, 9, 9) * 3**-0.5
            weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            mixed = np.einsum("hqk,khc->qhc", weights, values[window].reshape(9, 2, 3))
            folded[window] += mixed.reshape(3, 3, 2, 3)
    inner = jnp.asarray(folded[1:-1, 1:-1].reshape(1, rows * columns, 6), jnp.float32)
    found = nnx.jit(lambda module, x: module(x, grid))(attention, x)
    np.testing.assert_allclose(found, attention.proj(inner), atol=1e-6)


def test_the_class_token_attends_to_what_the_bias_lets_it_see():
    attention = ClassAttention(8, 2, qkv_bias=True, dtype=jnp.dtype(jnp.float32), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (1, 4, 8))
    shut = jnp.array([0.0, -jnp.inf, -jnp.inf, -jnp.inf])[None, None, None]
    own = attention.proj(attention.kv(x[:, :1])[..., 8:])
    np.testing.assert_allclose(attention(x, shut), own, atol=1e-6)
    assert not np.allclose(attention(x), own, atol=1e-3)


def test_the_class_token_counts_merged_patches_by_their_sizes():
    tokens = start_tokens(jnp.zeros((1, 3, 4)), prefix=0, grid=(1, 3))
    assert class_bias(tokens) is None
    sized = tokens.replace(sizes=jnp.array([[1.0, 2.0, 4.0]]))
    np.testing.assert_allclose(class_bias(sized)[0, 0, 0], np.log([1.0, 1.0, 2.0, 4.0]))
    masked = sized.replace(mask=jnp.array([[True, False, True]]))
    np.testing.assert_allclose(class_bias(masked)[0, 0, 0], [0, 0, -np.inf, np.log(4.0)])


def test_merged_patches_are_classified_as_they_are_left():
    logits, out = run_model(tiny("tome,r=4"), images())
    patches = out.aux["patch_logits"]
    assert patches.shape == (2, 16 - 2 * 4, 5)
    np.testing.assert_allclose(logits, out.aux["class_logits"] + 0.5 * patches.max(1), atol=1e-6)
    assert out.aux["stage0"].shape == (2, 8, 8, 6)
    assert out.features.shape == (2, 1 + 8, 12)


@pytest.mark.slow
def test_it_learns_and_updates_the_stem():
    model = tiny(drop_path_rate=0.2, remat="full")

    def loss(model):
        logits, out = model(images(), train=True, key=jax.random.key(3))
        return jnp.square(logits).sum() + jnp.square(out.aux["patch_logits"]).sum()

    gradients = nnx.jit(nnx.grad(loss))(model)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients))
    assert float(jnp.abs(gradients.outlookers[0].attn.attn.kernel[...]).max()) > 0
    assert int(model.patch_embed.convs[0].bn.count[...]) == 1


@pytest.mark.slow
def test_other_image_sizes_work():
    logits, out = run_model(tiny(), images(40, 28))
    assert logits.shape == (2, 5)
    assert out.features.shape == (2, 1 + 5 * 3, 12)  # the last of 7 columns is lost


def test_what_it_cannot_be_is_refused():
    with pytest.raises(UserError, match="this network has no class token"):
        tiny("evit,locations=0:")
    with pytest.raises(UserError, match="embed_dims must be the same from the second stage on"):
        tiny(layers=(1, 1, 1), embed_dims=(6, 12, 24), num_heads=(2, 3, 3))
    with pytest.raises(UserError, match="one number for each stage"):
        tiny(layers=(1, 1, 1))
    with pytest.raises(UserError, match="patch_size of a VOLO must be even, got 5"):
        tiny(patch_size=5, image_size=20)
