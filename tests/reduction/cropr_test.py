"""Cropr's scores, its order, and that fusion brings every token back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from evovit_jax.errors import UserError
from evovit_jax.reduction.base import Backbone
from evovit_jax.reduction.cropr import Cropr, CroprFields
from evovit_jax.reduction.query_classifier import CrossAttention
from evovit_jax.reduction.tokens import start_tokens


def reducer(**fields):
    backbone = Backbone(4, (6,), (2,), (2, 4), 1, (4,), classes=5)
    return Cropr(backbone, CroprFields(**fields), rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_tokens_of_the_lowest_products_leave_one_more_after_the_first_block():
    method = reducer(r=2)
    x = jax.random.normal(jax.random.key(0), (2, 9, 6))
    tokens = method.start(start_tokens(x, prefix=1, grid=(2, 4)))
    after = method.after_block(0, tokens)
    query = method.cropr[0].cross_attn.queries[0, 0]
    for image in range(2):
        scores = np.asarray(x[image, 1:] @ query)
        order = np.argsort(-scores) + 1
        np.testing.assert_array_equal(after.x[image, 1:], x[image][order[:5]])
        left, which = after.aside["left"].left[0]
        assert which[image].tolist() == order[5:].tolist()
        np.testing.assert_array_equal(left[image], x[image][order[5:]])
    assert method.after_block(1, after).x.shape == (2, 4, 6)


@pytest.mark.slow
def test_fusion_brings_every_token_back():
    method = reducer(r=2, last_layer_fusion=True)
    x = jax.random.normal(jax.random.key(1), (2, 9, 6))
    tokens = method.start(start_tokens(x, prefix=1, grid=(2, 4)))
    for block in range(2):
        tokens = method.after_block(block, tokens)
    whole = method.before_block(3, method.after_block(2, tokens))
    assert whole.x.shape == (2, 9, 6)
    np.testing.assert_array_equal(jnp.take_along_axis(whole.x, whole.source[..., None], 1), x)


@pytest.mark.slow
def test_queries_attend_to_the_tokens_of_each_head():
    attend = CrossAttention(4, 1, 2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(2), (1, 3, 4))
    parts = []
    for head in (slice(0, 2), slice(2, 4)):
        weights = jax.nn.softmax(x[0, :, head] @ attend.queries[0, 0, head] / 2**0.5)
        parts.append(weights @ x[0, :, head])
    mixed = attend.proj(jnp.concatenate(parts))
    want = mixed + attend.mlp(attend.mlp_norm(mixed))
    np.testing.assert_allclose(attend(x)[0, 0], want, atol=1e-5)


@pytest.mark.slow
def test_training_has_logits_of_each_classifier_and_inference_none():
    method = reducer(r=2)
    x = jax.random.normal(jax.random.key(3), (2, 9, 6))
    for train in (False, True):
        tokens = method.start(start_tokens(x, prefix=1, grid=(2, 4), train=train))
        for block in range(4):
            tokens = method.after_block(block, tokens)
        names = ["cropr_0", "cropr_1", "cropr_2"] if train else []
        assert list(method.aux_logits(tokens)) == names
        assert all(logits.shape == (2, 5) for logits in method.aux_logits(tokens).values())


def test_a_model_of_fusion_has_no_queries_for_going_without():
    method = reducer(last_layer_fusion=True).override(last_layer_fusion=False)
    tokens = method.start(start_tokens(jnp.zeros((1, 9, 6)), prefix=1, grid=(2, 4)))
    for block in range(2):
        tokens = method.after_block(block, tokens)
    with pytest.raises(UserError, match="made with last_layer_fusion"):
        method.after_block(2, tokens)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match="aux_heads 4 does not divide 6"):
        reducer(aux_heads=4)
