"""The keys of weights are those of Flax's own streams."""

import jax
from flax import nnx

from evovit_jax.models.keys import InitKeys


def test_keys_are_those_of_flax():
    ours, flax = InitKeys(3), nnx.Rngs(params=3)
    for _ in range(4):
        a, b = (jax.random.key_data(keys.params()) for keys in (ours, flax))
        assert bool((a == b).all())
    assert bool((ours.params() != InitKeys(3).params()).all())
