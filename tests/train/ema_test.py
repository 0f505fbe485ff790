"""Running averages."""

import jax.numpy as jnp
import numpy as np

from evovit_jax.train import ema


def test_update():
    old = {"a": jnp.array([1.0, 2.0]), "count": jnp.array(3)}
    new = {"a": jnp.array([3.0, 0.0]), "count": jnp.array(4)}
    found = ema.update(old, new, jnp.float32(0.75))
    np.testing.assert_allclose(found["a"], [1.5, 1.5])
    assert found["count"] == 4


def test_decay_rises_to_its_value():
    steps = jnp.array([0, 10, 10_000])
    found = [float(ema.decay_at(step, 0.99, warmup=True)) for step in steps]
    np.testing.assert_allclose(found, [0.1, 11 / 20, 0.99], rtol=1e-6)
    assert float(ema.decay_at(steps[0], 0.99, warmup=False)) == np.float32(0.99)
