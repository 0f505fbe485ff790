"""Density-peak clustering against loops over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import normal

from evovit_jax.reduction.dpcknn import clusters, weighted_means


def clusters_by_hand(x, count, neighbors):
    n, width = x.shape
    distance = np.array([[np.linalg.norm(a - b) for b in x] for a in x]) / np.sqrt(width)
    density = [np.exp(-np.mean(np.sort(distance[i])[:neighbors] ** 2)) for i in range(n)]
    score = []
    for i in range(n):
        denser = [distance[i, j] for j in range(n) if density[j] > density[i]]
        score.append(density[i] * (min(denser) if denser else distance.max()))
    centres = sorted(range(n), key=lambda i: -score[i])[:count]
    group = [int(np.argmin([distance[i, c] for c in centres])) for i in range(n)]
    for k, c in enumerate(centres):
        group[c] = k
    return group


def test_clusters_equal_those_found_token_by_token():
    x = normal(3, 14, 6) + 40  # far from the origin
    found = np.asarray(jax.jit(lambda x: clusters(x, 5, 4))(x))
    for b in range(3):
        assert found[b].tolist() == clusters_by_hand(x[b].astype(np.float64), 5, 4)


def test_a_cluster_is_the_weighted_mean_of_its_tokens():
    x, log_weights = normal(1, 6, 3), normal(1, 6, seed=2)
    group = np.array([[0, 1, 1, 0, 2, 1]], np.int32)
    means = jax.jit(lambda *args: weighted_means(*args, 3))(x, log_weights, group)
    for k, members in enumerate(([0, 3], [1, 2, 5], [4])):
        want = np.average(x[0, members], axis=0, weights=np.exp(log_weights[0, members]))
        np.testing.assert_allclose(means[0, k], want, atol=1e-4)


@pytest.mark.slow
def test_equal_tokens_have_a_finite_gradient():
    x = jnp.ones((1, 6, 3))

    def total(x):
        return weighted_means(x, x.sum(axis=2), clusters(x, 2, 3), 2).sum()

    assert bool(jnp.isfinite(jax.grad(total)(x)).all())
