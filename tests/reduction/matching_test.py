"""What merging methods share, against plain NumPy loops, and what merging must not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import normal

from evovit_jax.models import abstract_model
from evovit_jax.models.attention import attend
from evovit_jax.reduction.base import AttentionRequest
from evovit_jax.reduction.matching import bipartite, merge_by_size
from evovit_jax.reduction.tokens import group_sizes, spread, start_tokens


def merged_by_hand(x, metric, sizes, r, prefix):
    """One image, tokens one by one: the merged tokens, their sizes, and where each went."""
    n = len(x)
    even, odd = list(range(0, n, 2)), list(range(1, n, 2))
    unit = metric / np.linalg.norm(metric, axis=1, keepdims=True)
    edges = []
    for i in even:
        if i < prefix:
            continue
        best = max((j for j in odd if j >= prefix), key=lambda j: (unit[i] @ unit[j], -j))
        edges.append((-(unit[i] @ unit[best]), i, best))
    merging = {i: j for _, i, j in sorted(edges)[:r]}
    order = [i for i in even if i not in merging] + odd
    order = list(range(prefix)) + [i for i in order if i >= prefix]
    total = {i: x[i] * sizes[i] for i in order}
    count = {i: sizes[i] for i in order}
    for i, j in merging.items():
        total[j] = total[j] + x[i] * sizes[i]
        count[j] = count[j] + sizes[i]
    place = {i: k for k, i in enumerate(order)}
    source = [place[merging.get(i, i)] for i in range(n)]
    return np.stack([total[i] / count[i] for i in order]), [count[i] for i in order], source


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(("n", "r"), [(10, 3), (11, 4), (10, 1)])
def test_equals_merging_token_by_token(prefix, n, r):
    x, metric = normal(2, n, 4), normal(2, n, 4, seed=n)
    sizes = np.random.default_rng(n).integers(1, 6, (2, n)).astype(np.float32)
    tokens = start_tokens(jnp.asarray(x), prefix=prefix, grid=(1, n - prefix))
    tokens = tokens.replace(sizes=jnp.asarray(sizes))
    merge = jax.jit(lambda tokens, metric: merge_by_size(tokens, bipartite(metric, r, prefix)))
    merged = merge(tokens, metric)
    for b in range(2):
        want, want_sizes, want_source = merged_by_hand(
            *(np.asarray(a[b], np.float64) for a in (x, metric, sizes)), r, prefix
        )
        np.testing.assert_allclose(merged.x[b], want, atol=1e-5)
        np.testing.assert_allclose(merged.sizes[b], want_sizes)
        np.testing.assert_array_equal(merged.source[b], want_source)


@pytest.mark.slow
def test_sizes_are_the_counts_of_the_source_map_and_class_tokens_stay():
    x = jax.random.normal(jax.random.key(0), (2, 18, 4))
    tokens = start_tokens(x, prefix=2, grid=(4, 4))
    for _ in range(3):
        tokens = merge_by_size(tokens, bipartite(tokens.x, 4, 2))
    np.testing.assert_array_equal(tokens.sizes, group_sizes(tokens.source, 6).astype(jnp.float32))
    np.testing.assert_array_equal(tokens.x[:, :2], x[:, :2])


@pytest.mark.slow
def test_merging_takes_less_memory_than_not_merging():
    """Of a set only the tokens stay until the next block: sizes are no column of theirs."""

    def memory(reduction: str) -> int:
        model = abstract_model("vit_base_patch14_dinov2", reduction, depth=3)
        graphdef, state = nnx.split(model)
        run = jax.jit(lambda state, images: nnx.merge(graphdef, state)(images)[0])
        images = jax.ShapeDtypeStruct((1, 518, 518, 3), jnp.float32)
        return run.lower(state, images).compile().memory_analysis().temp_size_in_bytes

    assert memory("tome,r=107") < 0.95 * memory("none")


def test_merging_equal_tokens_changes_nothing():
    """Pairs of equal tokens merge, unmerge to themselves, and attention counts them twice."""
    half = normal(1, 1 + 4, 8)
    x = np.concatenate([half[:, :1], np.repeat(half[:, 1:], 2, axis=1)], axis=1)

    @jax.jit
    def merged(x):
        tokens = merge_by_size(start_tokens(x, prefix=1, grid=(2, 4)), bipartite(x, 4, 1))
        return tokens, spread(tokens.x, tokens.source)

    tokens, unmerged = merged(x)
    assert tokens.x.shape == (1, 5, 8)
    np.testing.assert_allclose(unmerged, x, atol=1e-6)

    @jax.jit
    def class_token(x, bias):
        q = k = v = x[:, None]
        return attend(q, k, v, scale=1.0, request=AttentionRequest(bias=bias))[0][:, 0, 0]

    bias = np.log(tokens.sizes)[:, None, None]
    np.testing.assert_allclose(class_token(tokens.x, bias), class_token(x, None), atol=1e-5)
