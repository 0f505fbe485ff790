"""The dense network's class attention, against the rows of its whole maps."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from tiny import filled

from evovit_jax.data import on_device
from evovit_jax.inference import dense_attention
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.models import EvalTransform
from evovit_jax.reduction.base import AttentionRequest

TINY = {"image_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
TRANSFORM = EvalTransform(image_size=16, resize=16)


class WholeMaps(dense_attention.Watching):
    """Looks at the rows of the class token in whole maps."""

    def attention_request(self, block, tokens):
        return AttentionRequest(needs=frozenset({"weights"}))

    def after_attention(self, block, tokens, attention):
        row = attention.weights[:, :, 0].mean(axis=1)
        before = tokens.aside.get(dense_attention.SEEN, 0.0)
        return tokens.put_aside(**{dense_attention.SEEN: before + row})


def seen(model, reduction, reducer=None):
    """`program` of a model, or the same of another reducer."""
    ready = ReadyModel("tiny", reduction, model, TRANSFORM)
    look, state = dense_attention.program(ready)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)

    def both(state, pixels):
        dense = nnx.merge(*nnx.split(model))
        dense.reducer = WholeMaps(model.reducer.backbone)
        images = on_device.normalize(pixels, TRANSFORM.mean, TRANSFORM.std)
        return look(state, pixels), dense(images)[1].aux[dense_attention.SEEN]

    return map(np.asarray, jax.jit(both)(state, pixels))


def test_class_attention_is_of_the_network_without_its_reduction():
    model = filled("deit_tiny_patch16_224", "topk,keep_rate=0.5,locations=0", **TINY)
    found, expected = seen(model, "topk")
    assert found.shape == (2, 16)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (found > 0).all()
    assert (found.sum(axis=1) < TINY["depth"]).all()  # the rest is on the class token itself


@pytest.mark.slow
def test_in_a_pyramid_a_token_shares_what_it_has_among_its_patches():
    model = filled("evo_levit_128s", "none", image_size=64, depth=(1, 1, 1))
    ready = ReadyModel("levit", "none", model, EvalTransform(image_size=64, resize=64))
    look, state = dense_attention.program(ready)
    found = np.asarray(jax.jit(look)(state, np.zeros((1, 64, 64, 3), np.uint8)))
    assert found.shape == (1, 16)
    assert (found > 0).all()
    assert found.sum() < 3
    # The last stage has one patch token: what it has is the same for all of its patches.
    grid = found.reshape(2, 2, 2, 2)
    assert not np.allclose(grid.std(axis=(1, 3)), 0)


def test_a_network_that_ranks_no_tokens_has_none():
    model = filled("deit_tiny_patch16_224", "none", **TINY)
    model.reducer.backbone = dataclasses.replace(model.reducer.backbone, scores=())
    ready = ReadyModel("tiny", "none", model, TRANSFORM)
    assert dense_attention.score_name(model) is None
    assert dense_attention.program(ready) is None
