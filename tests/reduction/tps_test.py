"""Squeezing against a loop over tokens, removed and masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import normal

from evovit_jax.reduction.tokens import start_tokens
from evovit_jax.reduction.tps import squeeze, squeeze_masked


def hosts_by_hand(x, hosts, sources, temperature):
    """The tokens after squeezing `sources` into `hosts`."""
    unit = x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-6)
    total, weight = np.e * x, np.full(len(x), np.e)
    for j in sources:
        best = max(hosts, key=lambda i: unit[i] @ unit[j])
        w = np.exp(unit[best] @ unit[j] / temperature)
        total[best] = total[best] + w * x[j]
        weight[best] += w
    return total / weight[:, None]


def test_what_leaves_is_squeezed_into_its_host():
    x = normal(2, 8, 4)
    run = jax.jit(lambda x: squeeze(start_tokens(x, prefix=1, grid=(1, 7)), 3, 0.5))
    tokens = run(x)
    for image in range(2):
        want = hosts_by_hand(x[image, 1:], range(3), range(3, 7), 0.5)
        np.testing.assert_allclose(tokens.x[image, 1:], want[:3], atol=1e-5)
    np.testing.assert_array_equal(tokens.x[:, 0], x[:, 0])
    assert (tokens.source >= 0).all()


@pytest.mark.slow
def test_masked_only_what_leaves_now_is_squeezed():
    x = jax.random.normal(jax.random.key(1), (1, 8, 4))
    before = jnp.asarray([[1.0, 1, 1, 1, 1, 0, 0]])
    kept = jnp.asarray([[1.0, 0, 1, 1, 0, 0, 0]])
    tokens = start_tokens(x, prefix=1, grid=(1, 7))
    found = squeeze_masked(tokens, kept, before, 1.0).x[0, 1:]
    want = hosts_by_hand(np.asarray(x[0, 1:]), [0, 2, 3], [1, 4], 1.0)
    np.testing.assert_allclose(found, want, atol=1e-5)
