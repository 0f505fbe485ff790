"""The learning rate over a training: a linear rise, then half a cosine."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

Schedule = Callable[[int | Int[Array, ""]], Float[Array, ""]]


def learning_rate(config: ConfigDict, *, total: int, warmup: int) -> Schedule:
    """The learning rate of step number `step` (0 the first), float32.

    As in timm, whose schedule DeiT and Evo-ViT use, the rise replaces the first steps of a cosine
    that spans the whole training; unlike there it is stepped at every step, not at every epoch.

    Args:
      config: the run's; the peak is scaled by batch_size / reference_batch.
      total: steps of the training.
      warmup: steps of the rise.
    """
    optim = config.optim
    scale = config.batch_size / optim.reference_batch if optim.reference_batch else 1.0
    peak = optim.learning_rate * scale
    start, end = optim.warmup_learning_rate, optim.min_learning_rate

    def rate(step: int | Int[Array, ""]) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        rising = start + (peak - start) * step / max(1, warmup)
        cosine = end + (peak - end) * (1 + jnp.cos(jnp.pi * jnp.minimum(step / total, 1))) / 2
        return jnp.where(step < warmup, rising, cosine)

    return rate
