"""A TPU's comparisons and products give what sorting and indexing give elsewhere, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from both_platforms import on_both

from evovit_jax.hardware.platforms import compiling_for
from evovit_jax.reduction import matching, one_hot, tokens

BATCH, N, D, K = 3, 11, 4, 5


def assert_equal(answers):
    for a, b in zip(*map(jax.tree.leaves, answers), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def normal(*shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(len(shape)), shape).astype(dtype)


@pytest.fixture
def scores():
    """Scores with ties, one row of them all alike, infinities."""
    values = jnp.round(2 * normal(BATCH, N)) / 2
    return values.at[1].set(0.25).at[2, 3].set(-jnp.inf).at[2, 4].set(jnp.inf)


@pytest.fixture
def index():
    rows = [jax.random.permutation(jax.random.key(i), N)[:K] for i in range(BATCH)]
    return jnp.stack(rows).astype(jnp.int32)


def test_the_largest_are_found_in_the_same_order(scores):
    assert_equal(on_both(lambda s: tokens.top_k(s, K), scores))
    assert_equal(on_both(tokens.order_by, scores))
    assert_equal(on_both(lambda s: tokens.among_top(s, tokens.top_k(s, K)[1]), scores))
    np.testing.assert_array_equal(tokens.top_k(scores, K)[1][1], jnp.arange(K))


def test_indices_are_put_in_order(index):
    assert_equal(on_both(tokens.ascending, index))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_are_moved_as_they_are(index, dtype):
    x, new = normal(BATCH, N, D, dtype=dtype), normal(BATCH, K, D, dtype=dtype)
    assert_equal(on_both(tokens.gather, x, index))
    assert_equal(on_both(tokens.gather, x[..., 0], index))
    assert_equal(on_both(tokens.scatter_set, x, index, new))
    assert_equal(on_both(tokens.scatter_set, x[..., 0], index, new[..., 0]))
    assert_equal(on_both(tokens.columns, x.swapaxes(1, 2), index))


def test_numbers_and_answers_are_moved_too(index):
    numbers = jnp.broadcast_to(jnp.arange(N, dtype=jnp.int32), (BATCH, N)) - 4
    assert_equal(on_both(tokens.gather, numbers, index))
    assert_equal(on_both(tokens.gather, numbers > 0, index))
    assert_equal(on_both(tokens.scatter_set, numbers, index, index))
    assert_equal(on_both(lambda i: tokens.membership(i, N), index))


def test_a_sum_travels_with_the_tokens_that_are_gathered(index):
    x, weights = normal(BATCH, N, D), jax.nn.softmax(normal(BATCH, N - 1))
    ours, theirs = on_both(tokens.gather_and_sum, x, index, weights)
    np.testing.assert_array_equal(ours[:, :K], theirs[:, :K])
    np.testing.assert_allclose(ours[:, K], (weights[..., None] * x[:, 1:]).sum(1), atol=1e-6)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_gradients_go_to_the_tokens_that_moved(index):
    x, new = normal(BATCH, N, D), normal(BATCH, K, D)

    def loss(x, new):
        values, places = tokens.top_k(x[..., 0], K)
        moved = tokens.scatter_set(x, index, new) * tokens.gather(x, places).mean()
        return (moved * moved).sum() + (values * values).sum()

    ours, theirs = on_both(jax.grad(loss, argnums=(0, 1)), x, new)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_many_tokens_are_sorted_and_not_compared():
    many = jnp.zeros((1, one_hot.MOST_TOKENS + 1))
    with compiling_for("tpu"):
        assert "top_k" in str(jax.make_jaxpr(lambda s: tokens.top_k(s, 3))(many))
        assert "top_k" not in str(jax.make_jaxpr(lambda s: tokens.top_k(s, 3))(many[:, 1:]))


@pytest.mark.parametrize("rest_by_score", [False, True])
@pytest.mark.parametrize(("n", "prefix"), [(N, 0), (N, 1), (N, 2), (N - 1, 1)])
def test_a_plan_of_merging_leads_to_the_same_places(n, prefix, rest_by_score):
    def plan(metric):
        return matching.bipartite(metric, 3, prefix, rest_by_score=rest_by_score)

    metric = jax.random.normal(jax.random.key(7), (BATCH, n, D)).at[0].set(1.0)
    assert_equal(on_both(plan, metric))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_tokens_are_averaged_in_one_product(dtype):
    x, metric = (
        normal(BATCH, N, D, dtype=dtype),
        jax.random.normal(jax.random.key(7), (BATCH, N, D)),
    )
    sizes = jnp.round(jax.random.uniform(jax.random.key(8), (BATCH, N), minval=1, maxval=9))

    def merge(x, sizes, metric):
        return matching.pooled(x, sizes, matching.bipartite(metric, 3, 1))

    (ours, counts), (theirs, want) = on_both(merge, x, sizes, metric)
    np.testing.assert_array_equal(counts, want)
    rounding, alone = {"float32": (1e-6, 2e-7), "bfloat16": (2**-8, 0)}[dtype]
    ours, theirs, x = (a.astype(jnp.float32) for a in (ours, theirs, x))
    np.testing.assert_allclose(ours, theirs, rtol=rounding, atol=rounding)
    np.testing.assert_allclose(ours[:, 0], x[:, 0], rtol=alone)
