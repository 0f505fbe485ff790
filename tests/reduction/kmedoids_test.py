"""K-medoids against loops over clusters and tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import normal

from evovit_jax.reduction.kmedoids import fit


def fit_by_hand(x, weights, medoids, iterations):
    distance = np.array([[np.linalg.norm(a - b) for b in x] for a in x])

    def assign(medoids):
        return [int(np.argmin([row[m] for m in medoids])) for row in distance]

    for _ in range(iterations):
        group = assign(medoids)
        medoids = [
            min(
                (j for j in range(len(x)) if group[j] == k),
                key=lambda j: weights[j] * distance[j].sum(),
            )
            for k in range(len(medoids))
        ]
    return medoids, assign(medoids)


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_equals_fitting_token_by_token(iterations):
    x, weights = normal(3, 15, 6) + 20, 0.1 + np.abs(normal(3, 15, seed=1))
    first = np.argsort(-weights)[:, :5].astype(np.int32)
    medoids, group = jax.device_get(
        jax.jit(lambda *args: fit(*args, iterations))(x, weights, first)
    )
    for b in range(3):
        want, want_group = fit_by_hand(
            x[b].astype(np.float64), weights[b], first[b].tolist(), iterations
        )
        assert medoids[b].tolist() == want
        assert group[b].tolist() == want_group


@pytest.mark.slow
def test_a_medoid_is_in_its_own_cluster():
    x = jax.random.normal(jax.random.key(2), (2, 12, 4))
    medoids, group = fit(x, jnp.ones((2, 12)), jnp.tile(jnp.arange(4)[None], (2, 1)), 3)
    own = jnp.take_along_axis(group, medoids, axis=1)
    np.testing.assert_array_equal(own, jnp.tile(jnp.arange(4)[None], (2, 1)))
