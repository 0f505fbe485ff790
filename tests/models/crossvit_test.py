"""CrossViT's own parts; that it computes what timm computes is parity's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import run_model

import evovit_jax
from evovit_jax.errors import UserError
from evovit_jax.models.bicubic import cubic_taps, resize_bicubic
from evovit_jax.models.crossvit import Stage
from evovit_jax.models.crossvit_embedding import CrossViTConfig, scaled

TINY = {
    "image_size": 48,
    "image_scale": (1.0, 2 / 3),
    "embed_dim": (8, 12),
    "depth": ((1, 2, 0),),
    "num_heads": (2, 3),
    "num_classes": 5,
}


def tiny(name="crossvit_9_240", **overrides):
    return evovit_jax.create_model(name, **{**TINY, **overrides}, seed=1)


def images(rows=48, columns=48):
    return jax.random.normal(jax.random.key(0), (2, rows, columns, 3))


def test_each_new_place_is_a_sum_of_four_with_edges_repeated():
    places, weights = cubic_taps(4, 3)
    assert places.tolist() == [[0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 3]]
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    # The kernel with a = -0.75 at distances of a half and of one and a half.
    np.testing.assert_allclose(weights[1], [-0.09375, 0.59375, 0.59375, -0.09375])


def test_resizing_keeps_what_is_constant_and_what_is_as_large():
    x = images(6, 8)
    np.testing.assert_array_equal(resize_bicubic(x, (6, 8)), x)
    ones = resize_bicubic(jnp.ones((1, 6, 8, 2)), (9, 5))
    np.testing.assert_allclose(ones, np.ones((1, 9, 5, 2)), rtol=1e-6)


def test_a_crop_is_the_middle_and_only_of_what_is_larger():
    x = images(6, 8)
    np.testing.assert_array_equal(scaled(x, (4, 5), crop=True), x[:, 1:5, 2:7])
    np.testing.assert_array_equal(scaled(x, (7, 5), crop=True), resize_bicubic(x, (7, 5)))


@pytest.mark.slow
def test_both_exchanges_read_the_branches_as_they_were():
    config = CrossViTConfig(**{**TINY, "embed_dim": (12, 12), "num_heads": (3, 3)})
    stage = Stage(config, (1, 1, 0), 0, rngs=nnx.Rngs(0))
    same = nnx.state(stage)
    for part in ("blocks", "projs", "fusion", "revert_projs"):
        nnx.update(getattr(stage, part)[1], same[part][0])
    a, b = (jax.random.normal(jax.random.key(i), (1, 5, 12)) for i in range(2))
    first, second = stage([a, b], train=False, key=None)
    swapped = stage([b, a], train=False, key=None)
    np.testing.assert_allclose(first, swapped[1], atol=1e-6)
    np.testing.assert_allclose(second, swapped[0], atol=1e-6)


@pytest.mark.slow
def test_it_learns():
    model = tiny("crossvit_9_dagger_240", drop_path_rate=0.2, remat="full")

    def loss(model):
        return jnp.square(model(images(), train=True, key=jax.random.key(3))[0]).sum()

    gradients = nnx.jit(nnx.grad(loss))(model)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients))
    assert float(jnp.abs(gradients.embeddings[1].patch_embed.proj[0].kernel[...]).max()) > 0
    assert float(jnp.abs(gradients.blocks[0].fusion[0][0].attn.kv.kernel[...]).max()) > 0


@pytest.mark.slow
def test_other_image_sizes_work_and_stochastic_depth_is_drawn():
    model = tiny(drop_path_rate=0.5)
    logits, out = run_model(model, images(72, 48))
    assert out.aux["branch0"].shape == (2, 1 + 6 * 4, 8)
    assert out.features.shape == (2, 1 + 3 * 2, 12)
    first, second = (
        run_model(model, images(72, 48), train=True, key=jax.random.key(i))[0] for i in (1, 2)
    )
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, logits)


def test_what_it_cannot_be_is_refused():
    with pytest.raises(UserError, match="a CrossViT cannot be reduced: its two branches"):
        evovit_jax.create_model("crossvit_9_240", "tome", **TINY)
    model = tiny()
    with pytest.raises(UserError, match=r"cannot be reduced.*\(got r\)"):
        model(images(), reduction={"r": 3})
    with pytest.raises(UserError, match="does not divide into patches of 12"):
        model(images(50, 48))
    with pytest.raises(UserError, match=r"depth must have .* got \(\(1, 0, 0\),\)"):
        tiny(depth=((1, 0, 0),))
    with pytest.raises(UserError, match="multi_conv makes patches of 12 or 16 pixels"):
        tiny("crossvit_9_dagger_240", patch_size=(8, 16))
    with pytest.raises(UserError, match="embed_dim must have 2 numbers, one for each branch"):
        tiny(embed_dim=(8, 12, 16))
