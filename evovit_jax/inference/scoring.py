"""Top-1, top-5 and loss over padded batches: padding never changes a metric."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from evovit_jax.data.on_device import Batch
from evovit_jax.errors import UserError
from evovit_jax.parallel import sharding


def new_sums() -> dict[str, Array]:
    """What an evaluation adds up, over no example yet."""
    return {name: jnp.zeros((), jnp.float32) for name in ("top1", "top5", "loss", "examples")}


def score(logits: Float[Array, "b k"], batch: Batch) -> dict[str, Float[Array, ""]]:
    """Hits, cross entropy and number of the examples of a batch that its mask lets count.

    An example ranks behind every class whose logit is larger, or equal and of a smaller index.
    """
    labels: Int[Array, " b"] = batch["label"]
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    classes = jnp.arange(logits.shape[1])[None]
    ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    rank = jnp.where(jnp.isfinite(logits).all(axis=1), ahead.sum(axis=1), logits.shape[1])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    values = {"top1": rank < 1, "top5": rank < 5, "loss": loss, "examples": batch["mask"]}
    return {
        name: jnp.where(batch["mask"], value.astype(jnp.float32), 0).sum()
        for name, value in values.items()
    }


def evaluate(
    step: Callable[[dict, dict[str, jax.Array]], dict],
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
) -> dict[str, float]:
    """Runs `step(sums, batch) -> sums` over an evaluation set.

    The host waits once, at the end.

    Returns:
      `top1` and `top5` in percent, the mean `loss`, and the number of `examples`.

    Raises:
      UserError: the set is empty.
    """
    sums = jax.device_put(new_sums(), sharding.replicated(mesh))
    for batch in batches:
        sums = step(sums, sharding.put_batch(mesh, batch))
    return means(sums)


def means(sums: dict[str, Array]) -> dict[str, float]:
    """What `evaluate` returns, from the sums over a set; waits for them.

    Raises:
      UserError: the set is empty.
    """
    total = {name: float(value) for name, value in jax.device_get(sums).items()}
    examples = total.pop("examples")
    if not examples:
        raise UserError("the evaluation data has no examples")
    return {
        "top1": 100 * total["top1"] / examples,
        "top5": 100 * total["top5"] / examples,
        "loss": total["loss"] / examples,
        "examples": int(examples),
    }
