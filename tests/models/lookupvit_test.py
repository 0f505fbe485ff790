"""LookupViT's own parts; that it computes what vit-pytorch computes is parity_test.py's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import normal

import evovit_jax
from evovit_jax.errors import UserError
from evovit_jax.models.lookupvit import (
    Block,
    LookupViTConfig,
    ReusedAttention,
    sine_cosine_positions,
)

TINY = {
    "image_size": 16,
    "patch_size": 4,
    "compressed_grid": 2,
    "embed_dim": 8,
    "depth": 1,
    "num_heads": 2,
    "head_dim": 4,
    "cross_num_heads": 2,
    "cross_head_dim": 3,
    "patch_kernel_size": 3,
    "num_classes": 5,
}
NAME = "lookupvit_base_patch16_224"


def tiny(**overrides):
    return evovit_jax.create_model(NAME, **{**TINY, **overrides})


def test_positions_are_sines_and_cosines_of_columns_then_rows():
    positions = sine_cosine_positions((2, 3), 8)
    assert positions.shape == (2, 3, 8)
    at = positions[1, 2]
    np.testing.assert_allclose(at[[0, 2, 4, 6]], [np.sin(2), np.cos(2), np.sin(1), np.cos(1)])
    np.testing.assert_allclose(at[[1, 5]], np.sin([2e-4, 1e-4]), rtol=1e-5)


def test_the_many_take_from_the_few_by_the_logits_read_the_other_way():
    reused = ReusedAttention(LookupViTConfig(**TINY), rngs=nnx.Rngs(0))
    few, logits = normal(1, 4, 8), np.full((1, 2, 4, 5), -60, np.float32)
    logits[:, :, 1] = 60  # all look at the second

    @nnx.jit
    def both(reused, few, logits):
        second = reused.to_out.join(reused.to_v.split(reused.norm_context(few[:, 1:2])))
        return reused(few, logits), second

    found, second = both(reused, few, logits)
    np.testing.assert_allclose(found, np.repeat(second, 5, axis=1), atol=1e-6)


def test_in_the_papers_form_attention_itself_is_read_the_other_way():
    config = LookupViTConfig(**TINY, form="paper")
    reused = ReusedAttention(config, rngs=nnx.Rngs(0))
    few, logits = normal(1, 4, 8), 3 * normal(1, 2, 4, 5, seed=1)
    weights = np.exp(logits[0].astype(np.float64))
    weights /= weights.sum(axis=-1, keepdims=True)
    values = nnx.jit(lambda reused, few: reused.to_v.split(reused.norm_context(few))[0])(
        reused, few
    )
    mixed = np.einsum("hmn,hmc->nhc", weights, values).reshape(5, -1)
    wanted = mixed @ np.asarray(reused.to_out.linear.kernel[...])
    found = nnx.jit(lambda reused, few, logits: reused(few, logits)[0])(reused, few, logits)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert Block(config, rngs=nnx.Rngs(0)).norm is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("remat", "form"), [("none", "vit_pytorch"), ("full", "vit_pytorch"), ("none", "paper")]
)
def test_it_learns_on_images_of_another_size(remat, form):
    model = tiny(remat=remat, form=form)
    images = jax.random.normal(jax.random.key(0), (2, 12, 20, 3))

    def loss(model):
        logits, out = model(images, train=True)
        assert out.features.shape == (2, 4, 8)
        assert out.aux["lookup_tokens"].shape == (2, 15, 8)
        return jnp.square(logits).sum()

    gradients = nnx.jit(nnx.grad(loss))(model)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients))
    assert float(jnp.abs(gradients.blocks[0].reused.to_v.linear.kernel[...]).max()) > 0


def test_what_it_cannot_be_is_refused():
    with pytest.raises(UserError, match="a LookupViT cannot be reduced"):
        evovit_jax.create_model(NAME, "tome", **TINY)
    model = tiny()
    with pytest.raises(UserError, match="8x8 pixels has 2x2 patches, fewer than the 3x3"):
        tiny(compressed_grid=3)(jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(UserError, match=r"cannot be reduced.*\(got r\)"):
        model(jnp.zeros((1, 16, 16, 3)), reduction={"r": 3})
    with pytest.raises(UserError, match="compressed_grid 5 is more than the 4 rows"):
        tiny(compressed_grid=5)
    with pytest.raises(UserError, match="form must be one of"):
        tiny(form="official")
    with pytest.raises(UserError, match="patch_kernel_size must be odd, got 4"):
        tiny(patch_kernel_size=4)
    with pytest.raises(UserError, match="embed_dim must be a multiple of 4 from 8, got 10"):
        tiny(embed_dim=10)
