"""Top-1, top-5 and loss over padded batches: padding never changes a metric."""

import collections
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from evovit_jax.data.on_device import Batch
from evovit_jax.errors import UserError
from evovit_jax.parallel import inference_program, sharding

# Batches that wait for the devices.
AHEAD = 2


def new_sums() -> dict[str, np.ndarray]:
    """What an evaluation adds up, over no example yet."""
    return dict.fromkeys(("top1", "top5", "loss", "examples"), np.zeros((), np.float32))


def ranks(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Int[Array, " b"]:
    """How many classes each image ranks its own behind; all of them if a logit is not finite.

    Its own is behind every class whose logit is larger, or equal and of a smaller index.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    classes = jnp.arange(logits.shape[1])[None]
    ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    return jnp.where(jnp.isfinite(logits).all(axis=1), ahead.sum(axis=1), logits.shape[1])


def score(logits: Float[Array, "b k"], batch: Batch) -> dict[str, Float[Array, ""]]:
    """Hits, cross entropy and number of the examples of a batch that its mask lets count."""
    rank = ranks(logits, batch["label"])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    values = {"top1": rank < 1, "top5": rank < 5, "loss": loss, "examples": batch["mask"]}
    return {
        name: jnp.where(batch["mask"], value.astype(jnp.float32), 0).sum()
        for name, value in values.items()
    }


def outcomes(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> dict[str, Array]:
    """What became of each image: int32 `rank` (`ranks`; -1 without a label) and `answer`.

    The answer is the most probable class, the first on ties; -1 if a logit is not finite.
    """
    rank = jnp.where(labels < 0, -1, ranks(logits, jnp.maximum(labels, 0)))
    answer = jnp.where(jnp.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)
    return {"rank": rank.astype(jnp.int32), "answer": answer.astype(jnp.int32)}


def make_step(logits_of: Callable[[Any, Array], Array], mesh: Mesh) -> Callable[..., dict]:
    """`step(state, sums, batch) -> sums`, jitted: adds a batch's hits and losses.

    Args:
      logits_of: of a state and uint8 pixels.
      mesh: of the devices that share a batch. The state may be sharded over them.
    """

    def add(state: Any, sums: dict[str, Array], batch: Batch) -> dict[str, Array]:
        values = score(logits_of(state, batch["image"]), batch)
        return {name: sums[name] + value for name, value in values.items()}

    return inference_program.jitted(add, mesh)


def evaluate(
    step: Callable[[dict, Batch], dict], batches: Iterable[dict[str, np.ndarray]], mesh: Mesh
) -> dict[str, float]:
    """Runs `step(sums, batch) -> sums` over an evaluation set.

    The host waits where the devices are more than `AHEAD` batches behind: a whole set would not fit
    their memory.

    Returns:
      `top1` and `top5` in percent, the mean `loss` and the number of `examples`.

    Raises:
      UserError: the set is empty.
    """
    sums = jax.device_put(new_sums(), sharding.replicated(mesh))
    pending = collections.deque()
    for on_host in batches:
        sums = step(sums, sharding.put_batch(mesh, on_host))
        pending.append(sums)
        if len(pending) > AHEAD:
            jax.block_until_ready(pending.popleft())
    return means(sums)


def means(sums: dict[str, Array]) -> dict[str, float]:
    """Percentages and the mean loss, from the sums over a set; waits for them.

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
