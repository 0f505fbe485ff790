"""jimm's towers, accelerated: as they were without a reduction, and as our encoder with one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters.as_ours import from_jimm
from adapters.other_libraries import SIDE, JimmCLIP, JimmViT, ScannedJimmTower
from flax import nnx
from tiny import some_slow

from evovit_jax.adapters import accelerate, with_token_maps

IMAGES = jax.random.normal(jax.random.key(0), (2, SIDE, SIDE, 3))


def run(call, model):
    """In one program, the model an argument as for its own scan."""
    return nnx.jit(call)(model, IMAGES)


def classify(model, images):
    return model(images)


def same(a, b, atol):
    np.testing.assert_allclose(a, b, atol=atol, rtol=0)


@pytest.mark.parametrize("pooling", some_slow(["CLS", "MAP"], ["MAP"]))
def test_a_classifier(pooling):
    model = JimmViT(pooling_type=pooling, rngs=nnx.Rngs(0))
    expected = run(classify, model)
    assert (run(classify, accelerate(model, "none")) == expected).all()
    output, maps = run(with_token_maps(classify), accelerate(model, "tome,r=5"))
    ours, out = run(classify, from_jimm(model.encoder, "tome,r=5", model.classifier))
    same(output, ours, 1e-4)
    for here, there in zip(maps, out.token_maps, strict=True):
        np.testing.assert_array_equal(here, there)
    assert jnp.abs(output - expected).max() > 1e-3  # the reduction did something


@pytest.mark.slow
def test_image_tower_of_clip():
    """The text tower has the same blocks, and stays as it is."""
    model = JimmCLIP(rngs=nnx.Rngs(0))
    faster = accelerate(model, "evit,keep_rate=0.5,locations=1")
    expected = from_jimm(model.vision_model, "evit,keep_rate=0.5,locations=1")
    words = jax.random.normal(jax.random.key(1), (2, 6, 24))

    def both(model, images):
        return model.encode_image(images), model(images, words)

    embeddings, similarities = run(both, faster)
    features, _ = run(classify, expected)
    same(embeddings, features @ model.visual_projection.kernel[...], 1e-4)
    text = model.text_model(words + model.positional_embedding[None])[:, -1]
    same(similarities, embeddings @ model.visual_projection(text).T, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["CLS", "MAP"])
def test_scanned_blocks(pooling):
    """Merging nothing is the scan; merging is what the same blocks in a sequence do."""
    model = JimmViT(ScannedJimmTower, pooling_type=pooling, rngs=nnx.Rngs(0))
    expected = run(classify, model)
    assert (run(classify, accelerate(model, "none")) == expected).all()
    same(run(classify, accelerate(model, "tome,r=0")), expected, 1e-5)

    other = JimmViT(pooling_type=pooling, rngs=nnx.Rngs(1))
    theirs, mine = model.encoder, other.encoder
    for name in ("patch_embeddings", "ln_post", "cls_token", "position_embeddings"):
        if hasattr(theirs, name):
            setattr(mine, name, getattr(theirs, name))
    if pooling == "MAP":
        mine.MAPHead = theirs.map_head
    for i, block in enumerate(mine.transformer.blocks.layers):
        nnx.update(block, jax.tree.map(lambda x, i=i: x[i], nnx.state(theirs.layers)))
    other.classifier = model.classifier
    expected = run(classify, accelerate(other, "tome,r=5"))
    same(run(classify, accelerate(model, "tome,r=5")), expected, 1e-5)


@pytest.mark.slow
def test_tokens_that_leave_do_not_count_in_the_pooling_head():
    model = JimmViT(pooling_type="MAP", rngs=nnx.Rngs(0))
    reduction = "topk,keep_rate=0.5,locations=1"
    output = run(classify, accelerate(model, reduction))
    expected, _ = run(classify, from_jimm(model.encoder, reduction, model.classifier))
    same(output, expected, 1e-4)
