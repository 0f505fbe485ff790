"""How DiffRate's rates are found: by gradient, to a number of multiply-adds.

Chen et al., "DiffRate", ICCV 2023 (arXiv:2305.17997), written from the paper. What is
minimised over the logits of rate_masks.py is the cross entropy on the labels plus `COST` times the
squared relative distance of the multiply-adds from the target; the network's weights stay as they
are. `COST` is the paper's factor of 5 on GMACs at DeiT-S and 2.9. Adam's step is 0.01, falling to a
tenth, over 3 epochs of ImageNet in the paper, and here as much larger as the search is shorter. The
rates of the last step that is within `NEAR` of the target are taken.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.reduction.base import Backbone, Batches, Reducer
from evovit_jax.reduction.rate_masks import Kept, Logits, Searching, first_logits, kept_patches

COST, NEAR = 42.0, 0.01
PAPER_STEPS, FEWEST_STEPS = 3 * 1251, 150
LEARNING_RATE, LAST_SHARE, LARGEST_RATE = 0.01, 0.1, 0.3
ADAM = optax.scale_by_adam()


def cost_of(
    gmacs: Callable[[Sequence[int]], float], backbone: Backbone
) -> Callable[[Kept], Float[Array, ""]]:
    """GMACs as a function of what blocks leave, read off the counts of a few tables.

    Args:
      gmacs: of a network in which pruning leaves so many patches in each block.
      backbone: of the network.
    """
    depth, p = backbone.depth, backbone.grid[0] * backbone.grid[1]
    whole, half, few = (gmacs([k] * depth) for k in (p, max(1, p // 2), 1))
    feed_forward = (whole - gmacs([p] * (depth - 1) + [1])) / (p - 1)
    # Attention of n tokens costs a n + b n^2: two differences from the whole network say a and b.
    lengths = [float(backbone.prefix + k) for k in (p, max(1, p // 2), 1)]
    in_attention = [
        more - depth * feed_forward * (lengths[0] - n)
        for more, n in zip((whole - half, whole - few), lengths[1:], strict=True)
    ]
    sums = [[lengths[0] - n, lengths[0] ** 2 - n**2] for n in lengths[1:]]
    a, b = map(float, np.linalg.solve((depth - 1) * np.array(sums), in_attention))
    # A merged token's cosine with each that stays, and its part in the sums of tokens and sizes.
    pair = 2 * (backbone.dim[0] + 1) / 1e9

    def cost(kept: Kept) -> Float[Array, ""]:
        left, unmerged = kept["prune"], kept["merge"]
        n = unmerged[:-1] + backbone.prefix
        saved = a * (lengths[0] - n) + b * (lengths[0] ** 2 - n**2)
        return (
            whole
            - saved.sum()
            - feed_forward * (p - unmerged).sum()
            + pair * ((left - unmerged) * unmerged).sum()
        )

    return cost


def make_step(
    model: nnx.Module,
    reducer: Reducer,
    share_of: Callable[[Kept], Float[Array, ""]],
) -> Callable[..., tuple[Logits, Any, tuple[Kept, Float[Array, ""]]]]:
    """A compiled step of the search: of logits, Adam's moments, a rate, images and labels.

    It gives the next logits and moments, and what blocks left and cost before; `share_of` is that
    cost over the target.
    """
    graphdef, state = nnx.split(model)

    def loss(logits: Logits, state: Any, images: Array, labels: Array) -> tuple[Array, Any]:
        network = nnx.merge(graphdef, state)
        network.reducer = Searching(reducer.backbone, reducer.fields, logits)
        kept = kept_patches(logits)
        share = share_of(kept)
        of_labels = optax.softmax_cross_entropy_with_integer_labels(network(images)[0], labels)
        return of_labels.mean() + COST * jnp.square(share - 1), (kept, share)

    @jax.jit
    def step(
        state: Any, logits: Logits, moments: Any, rate: Array, images: Array, labels: Array
    ) -> tuple:
        gradient, seen = jax.grad(loss, has_aux=True)(logits, state, images, labels)
        with jax.numpy_dtype_promotion("standard"):  # for Optax's integer counts
            updates, moments = ADAM.update(gradient, moments)
        return jax.tree.map(lambda x, u: x - rate * u, logits, updates), moments, seen

    return functools.partial(step, state)


def search(
    model: nnx.Module,
    batches: Batches,
    reducer: Reducer,
    *,
    gmacs: Callable[[Sequence[int]], float],
    target: float,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How many patches pruning and merging leave in each block.

    Args:
      model: with trained weights.
      batches: the images and labels to learn from.
      reducer: a DiffRate.
      gmacs: as of `cost_of`.
      target: GMACs.

    Raises:
      UserError: no step came near the target.
    """
    cost = cost_of(gmacs, reducer.backbone)
    steps = max(FEWEST_STEPS, 3 * sum(1 for _ in batches))
    rate = min(LARGEST_RATE, LEARNING_RATE * PAPER_STEPS / steps)
    falling = (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
    rates = jnp.asarray(rate * (LAST_SHARE + (1 - LAST_SHARE) * falling), jnp.float32)
    step = make_step(model, reducer, lambda kept: cost(kept) / target)
    logits, found, nearest = first_logits(reducer.backbone), None, np.inf
    moments = ADAM.init(logits)
    again = itertools.chain.from_iterable(itertools.repeat(batches))
    for rate, (images, labels) in zip(rates, again, strict=False):
        logits, moments, (kept, share) = step(logits, moments, rate, images, labels)
        share = float(share)
        nearest = min(nearest, share, key=lambda x: abs(x - 1))
        if abs(share - 1) <= NEAR:
            found = kept
    if found is None:
        raise UserError(
            f"diffrate: {steps} steps came no nearer to {target:g} GMACs than "
            f"{nearest * target:.4g}; choose another target, or more images"
        )
    return tuple(tuple(int(n) for n in found[kind]) for kind in ("prune", "merge"))
