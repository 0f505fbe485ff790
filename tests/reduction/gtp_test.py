"""GTP's graphs, its propagation and the thinned map, against loops."""

import jax
import numpy as np
import pytest
from tiny import normal

from evovit_jax.reduction.gtp import propagate, thin
from evovit_jax.reduction.token_graph import Graph, make_graph
from evovit_jax.reduction.tokens import start_tokens


@pytest.mark.parametrize("kind", ["spatial", "semantic", "mixed"])
def test_a_graph_links_neighbours_and_the_most_similar(kind):
    x = normal(1, 12, 4)
    unit = x[0] / np.linalg.norm(x[0], axis=1, keepdims=True)
    linked = np.zeros((12, 12))
    for i in range(12):
        near = sorted(set(range(12)) - {i}, key=lambda j: -(unit[i] @ unit[j]))[:3]
        for j in range(12):
            beside = max(abs(i // 4 - j // 4), abs(i % 4 - j % 4)) == 1
            linked[i, j] = (beside and kind != "semantic") or (j in near and kind != "spatial")
    root = linked.sum(axis=1) ** -0.5
    found = jax.jit(lambda x: make_graph(x, (3, 4), kind, 3))(x).weights[0]
    np.testing.assert_allclose(found, root[:, None] * linked * root[None], atol=1e-6)


def test_what_leaves_is_propagated_and_the_graph_shrinks():
    x, weights = normal(1, 5, 3), np.abs(normal(1, 4, 4))
    stay, leave = np.array([[2, 0]], np.int32), np.array([[3, 1]], np.int32)

    @jax.jit
    def reduced(x, weights, stay, leave):
        tokens = start_tokens(x, prefix=1, grid=(2, 2)).put_aside(graph=Graph(weights))
        return propagate(tokens, stay, leave, 0, 0.5)

    after = reduced(x, weights, stay, leave)
    patches, graph = x[0, 1:], weights[0]
    for row, i in enumerate((2, 0)):
        gain = 0.5 * (graph[i, 3] * patches[3] + graph[i, 1] * patches[1])
        np.testing.assert_allclose(after.x[0, 1 + row], patches[i] + gain, atol=1e-6)
        size = 1 + 0.5 * (graph[i, 3] + graph[i, 1])
        assert after.sizes[0, 1 + row] == pytest.approx(size, rel=1e-6)
    np.testing.assert_allclose(after.aside["graph"].weights[0], graph[[2, 0]][:, [2, 0]])
    np.testing.assert_array_equal(after.x[:, 0], x[:, 0])
    assert after.source.tolist() == [[0, 2, -1, 1, -1]]


def test_a_thinned_map_keeps_the_largest_entries_of_each_head():
    both = jax.jit(lambda logits: (thin(logits, 0.6), jax.nn.softmax(logits, axis=-1)))
    weights, whole = jax.device_get(both(normal(1, 2, 5, 5)))
    for head in range(2):
        least = np.sort(whole[0, head], axis=None)[int(25 * 0.4) - 1]
        want = np.where(whole[0, head] >= least, whole[0, head], 0.0)
        np.testing.assert_allclose(weights[0, head], want)
