"""MCTF's weights of edges, its two ways, its counts and the merged map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import normal

from evovit_jax.reduction import token_counts
from evovit_jax.reduction.base import AttentionView, Backbone
from evovit_jax.reduction.matching import Merge, pooled_map
from evovit_jax.reduction.mctf import MCTF, MCTFFields, edge_weights
from evovit_jax.reduction.tokens import group_sizes, start_tokens


def reducer(**fields):
    return MCTF(Backbone(3, (4,), (2,), (3, 4), 1, (3,)), MCTFFields(**fields), rngs=nnx.Rngs(0))


def tokens_of(key, n=13):
    return start_tokens(jnp.asarray(normal(2, n, 4, seed=key)), prefix=1, grid=(3, 4))


def test_an_edge_weighs_similarity_information_and_size():
    tokens = tokens_of(0)
    sizes = np.array([[1, 2, 1, 3] + [1] * 9] * 2, np.float32)
    attention = 0.1 + np.abs(normal(2, 13, seed=1))
    tokens = tokens.replace(sizes=jnp.asarray(sizes))
    fields = MCTFFields(tau_sim=2, tau_info=3, tau_size=5)
    found = np.asarray(jax.jit(lambda *args: edge_weights(*args, fields))(tokens, attention))
    x = np.asarray(tokens.x[0])
    cosine = x[2] @ x[7] / np.linalg.norm(x[2]) / np.linalg.norm(x[7])
    information = attention[0].min() / attention[0]
    want = ((cosine + 1) / 2) ** (1 / 2)
    want *= float(information[2] * information[7]) ** (1 / 3)
    want *= float(1 / sizes[0, 2] / sizes[0, 7]) ** (1 / 5)
    assert found[0, 2, 7] == pytest.approx(float(want), rel=1e-5)


@pytest.mark.slow
def test_both_ways_merge_r_and_no_token_is_lost():
    tokens, attention = tokens_of(2), jnp.ones((2, 13))
    method = reducer(r=5, tau_info=0, tau_size=0, pooling="size")
    plan, _ = method.plan(tokens, attention, 5)
    assert [merge.merged.shape[1] for merge in plan] == [2, 3]
    aside = tokens.put_aside(received=attention)
    after = reducer(r=3, pooling="size").after_block(1, aside)
    assert after.x.shape == (2, 10, 4)
    assert after.aside == {}
    np.testing.assert_array_equal(after.sizes, group_sizes(after.source, 10))
    for image in range(2):  # every token is the mean of those that it holds
        for place in range(10):
            held = np.asarray(tokens.x[image])[np.asarray(after.source[image]) == place]
            np.testing.assert_allclose(after.x[image, place], held.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize(("r", "left"), [(3, 10), (16, 10), (0.2, 11), (0, 13)])
def test_ten_tokens_stay(r, left):
    counts = token_counts.count(reducer(r=r, locations=1), (3, 4))
    assert [count.leaving for count in counts] == [13, left, left]


@pytest.mark.slow
def test_ahead_the_merged_tokens_attend_by_the_merged_map():
    tokens = tokens_of(3)
    weights = jax.nn.softmax(jax.random.normal(jax.random.key(4), (2, 2, 13, 13)), axis=-1)
    request = reducer(r=3).attention_request(1, tokens)
    merged, after = request.look_ahead(tokens, AttentionView(weights=weights))
    assert merged.x.shape == (2, 10, 4)
    assert after.weights.shape == (2, 2, 10, 10)
    np.testing.assert_allclose(after.weights.sum(axis=-1), 1.0, rtol=1e-5)


def test_a_map_is_pooled_over_queries_and_added_over_keys():
    weights = jnp.arange(9.0).reshape(1, 1, 3, 3)
    merge = Merge(
        kept=jnp.asarray([[0, 1]]), merged=jnp.asarray([[2]]), into=jnp.asarray([[1]]), untouched=1
    )
    found = np.asarray(jax.jit(pooled_map)(weights, jnp.asarray([[1.0, 1.0, 3.0]]), merge))
    # Columns 1 and 2 add up to 3, 9 and 15; rows 1 and 2 are averaged by 1 and 3.
    np.testing.assert_allclose(found[0, 0], [[0, 3], [(3 + 18) / 4, (9 + 45) / 4]])
