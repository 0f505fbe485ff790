"""bonsai's ViT and DINOv3, accelerated: as they were, and as our encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters.as_ours import from_bonsai, from_dino
from adapters.other_libraries import SIDE, BonsaiDino, BonsaiViT
from flax import nnx

from evovit_jax.adapters import accelerate, with_token_maps

IMAGES = jax.random.normal(jax.random.key(0), (2, SIDE, SIDE, 3))


def same(a, b):
    np.testing.assert_allclose(a, b, atol=1e-4, rtol=0)


def test_vit():
    model = BonsaiViT(nnx.Rngs(0))

    def call(model):
        return jax.jit(lambda images: model(images, rngs=None))(IMAGES)

    expected = call(model)
    faster = accelerate(model, "tome,r=5")
    assert isinstance(faster, BonsaiViT)
    assert (call(accelerate(model, "none")) == expected).all()
    ours, _ = nnx.jit(lambda model: model(IMAGES))(from_bonsai(model, "tome,r=5"))
    same(call(faster), ours)
    assert jnp.abs(ours - expected).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(SIDE, SIDE), (16, 28)])
def test_dinov3(shape):
    """Rotary positions go with the tokens; dense outputs have their grid, which need no square."""
    model = BonsaiDino(nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (2, *shape, 3))
    pixels = images.transpose(0, 3, 1, 2)
    faster, ours = accelerate(model, "tome,r=3"), from_dino(model, "tome,r=3")
    dense, (found, maps), (pooled, out) = jax.jit(
        lambda: (model(pixels), with_token_maps(faster)(pixels), ours(images))
    )()
    same(found["pooler_output"], pooled)
    first = ours.prefix
    same(found["last_hidden_state"][:, :first], out.features[:, :first])
    patches = out.dense()
    same(found["last_hidden_state"][:, first:], patches.reshape(2, -1, patches.shape[-1]))
    np.testing.assert_array_equal(maps[-1], out.token_maps[-1])
    unreduced = accelerate(model, "none")(pixels)["last_hidden_state"]
    assert unreduced.shape == found["last_hidden_state"].shape
    same(unreduced, dense["last_hidden_state"])
