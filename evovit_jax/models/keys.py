"""The keys that weights are drawn with."""

import jax
from flax import nnx


class InitKeys(nnx.Rngs):
    """The stream `params` of `nnx.Rngs(params=seed)`: the same keys, counted in Python.

    A network is mostly made inside a traced function (for its shapes, or sharded from the start),
    where every update of a counter that is an array costs more than the layer that it is for.
    """

    def __init__(self, seed: int):
        self.seed, self.taken = seed, 0

    def params(self) -> jax.Array:
        """The next key."""
        key = jax.random.fold_in(jax.random.key(self.seed), self.taken)
        self.taken += 1
        return key
