"""The gradient of a batch, computed in several micro-batches one after another."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from evovit_jax.models.variables import Variables
from evovit_jax.train import gradient_sums
from evovit_jax.train.losses import Terms


def mean_gradients(
    loss: Callable[..., Any],
    params: Variables,
    stats: Variables,
    images: Float[Array, "b h w c"],
    targets: Float[Array, "b k"],
    key: Key[Array, ""],
    *,
    parts: int,
    float32_sums: bool = True,
) -> tuple[Variables, Variables, Terms]:
    """The mean gradient of the batch, the new statistics, and the mean of the terms.

    Args:
      loss: of (params, stats, images, targets, key): the loss, and (statistics, terms) beside it.
      params: what is differentiated.
      stats: of the forward pass; micro-batches update them in turn.
      images: of the whole batch.
      targets: likewise.
      key: what is random in the forward pass; each micro-batch folds in its number.
      parts: micro-batches; they divide the batch.
      float32_sums: whether gradients of narrower layers are added up in float32.
    """
    differentiate = jax.grad(loss, has_aux=True)
    if float32_sums:
        differentiate = gradient_sums.in_float32(differentiate)
    if parts == 1:
        grads, (stats, terms) = differentiate(params, stats, images, targets, key)
        return grads, stats, terms
    # Row i goes to micro-batch i mod n, so that every device splits its own rows.
    split = [
        x.reshape(len(x) // parts, parts, *x.shape[1:]).swapaxes(0, 1) for x in (images, targets)
    ]

    def add(carry, micro):
        stats, total = carry
        grads, (stats, terms) = differentiate(
            params, stats, *micro[:2], jax.random.fold_in(key, micro[2])
        )
        return (stats, jax.tree.map(jnp.add, total, grads)), terms

    zeros = jax.tree.map(jnp.zeros_like, params)
    (stats, total), terms = jax.lax.scan(add, (stats, zeros), (*split, jnp.arange(parts)))
    mean = jax.tree.map(lambda x: x / parts, total)
    return mean, stats, jax.tree.map(lambda x: x.mean(axis=0), terms)
