"""Exponential moving averages of parameters and batch statistics."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def decay_at(step: Int[Array, ""], decay: float, *, warmup: bool) -> Float[Array, ""]:
    """The decay of the update after step number `step` (0 the first).

    With `warmup` it rises as (1 + step) / (10 + step) up to `decay`, so that a short run's average
    forgets the initial values (TensorFlow's `ExponentialMovingAverage`, `num_updates`).
    """
    if not warmup:
        return jnp.float32(decay)
    taken = step.astype(jnp.float32)
    return jnp.minimum(decay, (1 + taken) / (10 + taken))


def update(average: Any, new: Any, decay: Float[Array, ""]) -> Any:
    """`decay * average + (1 - decay) * new`; what is no float (a counter) is `new`."""

    def one(old: Array, value: Array) -> Array:
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return value
        return old + (1 - decay).astype(old.dtype) * (value - old)

    return jax.tree.map(one, average, new)
