"""Gradients of micro-batches against those of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evovit_jax.train.micro_batches import mean_gradients

PARAMS = {"kernel": jnp.linspace(-1, 1, 6).reshape(3, 2)}
STATS = {"seen": jnp.zeros((), jnp.int32)}
IMAGES = jax.random.normal(jax.random.key(0), (8, 1, 1, 3))
TARGETS = jax.random.normal(jax.random.key(1), (8, 2))


def loss(params, stats, images, targets, key):
    """The mean square error; counts its calls, and draws a number."""
    error = jnp.square(images[:, 0, 0] @ params["kernel"] - targets).mean()
    return error, ({"seen": stats["seen"] + 1}, {"loss": error, "drawn": jax.random.uniform(key)})


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_mean_gradient_is_that_of_the_batch(parts):
    given = (PARAMS, STATS, IMAGES, TARGETS, jax.random.key(2))
    expected = jax.grad(lambda params: loss(params, *given[1:])[0])(PARAMS)
    grads, stats, terms = mean_gradients(loss, *given, parts=parts)
    np.testing.assert_allclose(grads["kernel"], expected["kernel"], rtol=1e-5)
    np.testing.assert_allclose(terms["loss"], loss(*given)[0], rtol=1e-6)
    assert int(stats["seen"]) == parts  # each part updates the statistics of the one before


def test_each_part_draws_its_own_numbers():
    key = jax.random.key(2)
    _, _, terms = mean_gradients(loss, PARAMS, STATS, IMAGES, TARGETS, key, parts=2)
    drawn = [float(jax.random.uniform(jax.random.fold_in(key, part))) for part in range(2)]
    assert drawn[0] != drawn[1]
    np.testing.assert_allclose(terms["drawn"], np.mean(drawn), rtol=1e-6)
