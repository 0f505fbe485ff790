"""DiffRate while its rates are learned: masks in place of fewer tokens, in one fixed program.

Of each block the numbers of patches that pruning and that merging leave have a distribution over
all numbers, the softmax of learned logits (the paper's differentiable discrete proxy):

- A block leaves the mean number, rounded up; its gradient is that of the mean (straight-through).
- The token of rank r stays with the probability that more than r do. In the forward pass it stays
  or goes by its rank, the gradient is that of the probability.
- All tokens stay in their places, and those that went are out of every attention and mean. So the
  program is the same whatever the numbers are, and computes what `DiffRate` computes.

Tested in tests/reduction/rate_search_test.py.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from evovit_jax.reduction.base import AttentionRequest, AttentionView, Backbone, Fields, Reducer
from evovit_jax.reduction.dynamic_vit import masked_softmax
from evovit_jax.reduction.matching import products, unit
from evovit_jax.reduction.tokens import TokenSet, order_by

SPREAD = 1 / 8  # of the first distributions, a share of the patches

# "prune" and "merge": logits [depth, p] of leaving 1, 2, ..., p patches.
Logits = dict[str, Float[Array, "depth p"]]
# Likewise: how many patches each block leaves.
Kept = dict[str, Float[Array, " depth"]]


def first_logits(backbone: Backbone) -> Logits:
    """Distributions that are highest at leaving everything."""
    p = backbone.grid[0] * backbone.grid[1]
    distance = (p - np.arange(1, p + 1)) / (p * SPREAD)
    rows = jnp.asarray(np.tile(-(distance**2) / 2, (backbone.depth, 1)), jnp.float32)
    return {"prune": rows, "merge": rows}


def straight_through(value: Float[Array, "*n"], soft: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`value` with the gradient of `soft`."""
    return jax.lax.stop_gradient(value - soft) + soft


def kept_patches(logits: Logits) -> Kept:
    """How many patches pruning and merging leave in each block, never more than came."""
    depth, p = logits["prune"].shape
    means = {
        kind: jax.nn.softmax(rows, axis=1) @ jnp.arange(1.0, p + 1) for kind, rows in logits.items()
    }
    wanted = {kind: straight_through(jnp.ceil(mean), mean) for kind, mean in means.items()}
    left, kept = jnp.float32(p), {"prune": [], "merge": []}
    for block, kind in itertools.product(range(depth), ("prune", "merge")):
        left = jnp.minimum(left, wanted[kind][block])
        kept[kind].append(left)
    return {kind: jnp.stack(numbers) for kind, numbers in kept.items()}


class Searching(Reducer):
    """DiffRate with masks in place of fewer tokens, and logits in place of numbers."""

    def __init__(self, backbone: Backbone, fields: Fields, logits: Logits):
        super().__init__(backbone, fields, rngs=nnx.Rngs(0))
        self.prune, self.merge = nnx.Param(logits["prune"]), nnx.Param(logits["merge"])

    def start(self, tokens: TokenSet) -> TokenSet:
        """Everything is there, and stands for itself."""
        return tokens.replace(
            sizes=jnp.ones(tokens.x.shape[:2]), mask=jnp.ones(tokens.x.shape[:2], bool)
        ).put_aside(there=jnp.ones((tokens.x.shape[0], tokens.patches)))

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """Class attention, to what is there, in proportion to sizes."""
        del block
        policy = jnp.pad(tokens.aside["there"], ((0, 0), (tokens.prefix, 0)), constant_values=1.0)
        bias = None
        if self.fields.proportional_attention:
            bias = jnp.log(jnp.maximum(tokens.sizes, 1e-6))[:, None, None]
        return dataclasses.replace(
            self.class_row(), bias=bias, normalise=lambda x: masked_softmax(x, policy)
        )

    def after_attention(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Masks what is pruned, and merges and masks what is merged."""
        there = tokens.aside["there"]
        scores = jnp.where(there > 0.5, attention.patch_scores(tokens.prefix), -1.0)
        rank = jnp.argsort(order_by(scores), axis=1)
        pruned, unmerged = self.stays(block, rank)
        stays = there * pruned
        goes, there = stays * (1 - unmerged), stays * unmerged
        tokens = merged_into(tokens, goes, there > 0.5)
        mask = jnp.pad(there > 0.5, ((0, 0), (tokens.prefix, 0)), constant_values=True)
        return tokens.replace(mask=mask).put_aside(there=there)

    def stays(
        self, block: int, rank: Int[Array, "b p"]
    ) -> tuple[Float[Array, "b p"], Float[Array, "b p"]]:
        """1 for the ranks that pruning leaves, and for those that merging leaves, else 0."""
        logits = {"prune": self.prune[...], "merge": self.merge[...]}
        kept, masks = kept_patches(logits), []
        for kind in ("prune", "merge"):
            shares = jax.nn.softmax(logits[kind][block])
            at_least = jnp.cumsum(shares[::-1])[::-1]  # of rank r: that r + 1 or more stay
            hard = (rank.astype(jnp.float32) < kept[kind][block]).astype(jnp.float32)
            masks.append(straight_through(hard, at_least[rank]))
        return masks[0], masks[1]


def merged_into(tokens: TokenSet, goes: Float[Array, "b p"], stays: Bool[Array, "b p"]) -> TokenSet:
    """Each patch that goes merges into the most similar that stays, as in DiffRate."""
    prefix, p = tokens.prefix, tokens.patches
    patches = tokens.x[:, prefix:]
    direction = unit(patches)
    cosine = jnp.where(stays[:, None], products(direction, direction), -jnp.inf)
    pairs = jax.nn.one_hot(cosine.argmax(axis=2), p) * goes[..., None]
    total = jnp.einsum("bij,bid->bjd", pairs, patches.astype(jnp.float32), precision="highest")
    mean = (patches + total) / (1 + pairs.sum(axis=1))[..., None]
    alike = jnp.where(stays.any(axis=1, keepdims=True), cosine.max(axis=2), 0.0)
    gain = jnp.einsum("bij,bi->bj", pairs, tokens.sizes[:, prefix:] * alike, precision="highest")
    return tokens.replace(
        x=jnp.concatenate([tokens.x[:, :prefix], mean.astype(tokens.x.dtype)], axis=1),
        sizes=tokens.sizes.at[:, prefix:].add(gain),
    )
