"""Batch norm against PyTorch's rules, and the layers that it folds into."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from evovit_jax.models.batch_norm import BatchNorm, ConvNorm, LinearNorm, NormLinear, fold_in_place


def shifted(module, seed=0):
    """The module with statistics and factors that are not the initial ones."""
    rng = np.random.default_rng(seed)
    for name, low, high in (("scale", 0.5, 2), ("bias", -1, 1), ("mean", -1, 1), ("var", 0.5, 2)):
        variable = getattr(module.bn, name)
        variable[...] = jnp.asarray(rng.uniform(low, high, variable.shape), jnp.float32)
    return module


def test_training_uses_the_batch_and_moves_the_running_statistics():
    norm = BatchNorm(3, momentum=0.1)
    x = np.random.default_rng(0).normal(2, 3, (4, 5, 3)).astype(np.float32)
    y = norm(jnp.asarray(x), train=True)
    flat = x.reshape(20, 3)
    expected = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * flat.mean(0), rtol=1e-5)
    # The running variance takes the unbiased one, as PyTorch's does.
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    assert int(norm.count[...]) == 1


def test_inference_uses_the_running_statistics():
    norm = BatchNorm(2)
    norm.mean[...], norm.var[...] = jnp.array([1.0, 2.0]), jnp.array([4.0, 0.25])
    y = norm(jnp.array([[3.0, 3.0]]), train=False)
    np.testing.assert_allclose(y, [[1.0, 2.0]], rtol=1e-4)
    assert int(norm.count[...]) == 0


def test_half_precision_comes_out_as_it_came_in():
    norm = BatchNorm(3)
    y = norm(jnp.ones((2, 3), jnp.bfloat16), train=True)
    assert y.dtype == jnp.bfloat16
    assert norm.mean.dtype == jnp.float32


def test_layers_fold():
    rngs = nnx.Rngs(0)
    x = jax.random.normal(jax.random.key(1), (2, 6, 6, 4))
    cases = [
        (LinearNorm(4, 3, dtype=jnp.float32, rngs=rngs), x),
        (ConvNorm(4, 6, 3, stride=2, groups=2, dtype=jnp.float32, rngs=rngs), x),
        (NormLinear(4, 5, rngs=rngs), x[:, 0, 0]),
    ]
    for layer, given in cases:
        shifted(layer)
        before = layer(given, train=False)
        assert fold_in_place(layer)
        assert layer.bn is None
        np.testing.assert_allclose(layer(given, train=False), before, atol=1e-5)
        assert not fold_in_place(layer)
