"""MCTF: merges tokens that are alike, of little information, and small.

Lee et al., "Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision
Transformers", CVPR 2024 (arXiv:2403.10030), written from the paper.

1. Tokens alternate between A and B as in ToMe. An edge weighs (Section 3.2, equations 3 to 6)
   `((cos + 1) / 2)^(1/tau_sim) * (u_i u_j)^(1/tau_info) * (z_i z_j)^(1/tau_size)`: cos between the
   tokens themselves, u one over the attention that a token receives (the mean over heads and
   queries), z one over its size, each over the largest of all. A tau of 0 leaves a factor out.
2. Bidirectional: half of the r merges are the best edges from A to B; then each token of B has an
   edge, of the same weights, to what is left of A, and the best of these are the other half.
3. Means are weighted by attention received times size (`pooling="attention"`), or by size.
4. One step ahead (Section 3.3): the map of the block's own attention decides, tokens merge before
   it adds to them, and the map is merged with them (columns add, rows are the same means) and used
   with the values of the merged tokens. `ahead="precise"` attends anew instead; `ahead="after"`
   merges after the feed-forward, by the block's map.

At least 10 tokens stay, and at most half of the patches merge at once. r below 1 is a share.
Attention is in proportion to sizes. The order afterwards, which decides how tokens alternate in the
next block: class tokens, what is left of A in its order, B (by falling weight, if bidirectional).

Published recipe: 30 epochs with a second pass at a smaller random r as the teacher. DeiT-T at
r = 16 72.7 (0.71 GMACs), DeiT-S 80.1 (2.60), both trained. In the paper the names of the taus are
exchanged; these are the code's.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.reduction import base
from evovit_jax.reduction.base import AttentionRequest, AttentionView, Backbone, Reducer
from evovit_jax.reduction.card import OPTIONAL, Card
from evovit_jax.reduction.knob import Knob, numbers_leaving
from evovit_jax.reduction.matching import (
    Merge,
    added_sizes,
    alternate,
    best_edges,
    merge_back,
    merge_strongest,
    merge_weighted,
    places,
    pooled_map,
    products,
    sizes_of,
    unit,
)
from evovit_jax.reduction.merging import log_sizes
from evovit_jax.reduction.tokens import TokenSet, gather

FEWEST = 10  # tokens that always stay


@dataclasses.dataclass(frozen=True)
class MCTFFields(base.Fields):
    """Settings of MCTF.

    Attributes:
      r: tokens that merge at a location, or their share if below 1.
      locations: the blocks that merge; by default all but the first.
      ahead: "map", "precise" or "after" (see the top of this file).
      tau_sim, tau_info, tau_size: temperatures of the three factors; 0 for without.
      bidirectional: whether edges go both ways.
      pooling: what means are weighted by, "attention" or "size".
      proportional_attention: whether attention counts a token by its size.
    """

    r: float = 16
    locations: int | tuple[int, ...] | None = None
    ahead: str = "map"
    tau_sim: float = 1
    tau_info: float = 20
    tau_size: float = 40
    bidirectional: bool = True
    pooling: str = "attention"
    proportional_attention: bool = True

    def __post_init__(self):
        if self.r < 0 or (self.r >= 1 and self.r != int(self.r)):
            raise UserError(f"mctf r must be a whole number or a share below 1, got {self.r!r}")
        if min(self.tau_sim, self.tau_info, self.tau_size) < 0:
            raise UserError("mctf: tau_sim, tau_info and tau_size must not be negative")
        base.check_choice("mctf ahead", self.ahead, ("map", "precise", "after"))
        base.check_choice("mctf pooling", self.pooling, ("attention", "size"))

    def blocks(self, backbone: Backbone) -> tuple[int, ...]:
        """The blocks that merge; UserError for such as do not fit the network."""
        blocks = tuple(range(1, backbone.depth)) if self.locations is None else self.locations
        blocks = (blocks,) if isinstance(blocks, int) else blocks or (0,)
        base.check_blocks("mctf locations", blocks, backbone.depth)
        return blocks

    check = blocks


class MCTF(Reducer):
    """Merging by similarity, informativeness and size."""

    card = Card(
        title="MCTF",
        paper="2403.10030",
        summary="merges by several criteria, one step ahead",
        training=OPTIONAL,
        score="similar tokens, attention received, sizes",
        fused_attention="no",
        equal_to=("mlvlab/MCTF",),
        notes="MIT; a file with ToMe's header (CC-BY-NC)",
    )
    knob = Knob("r", numbers_leaving)
    Fields = MCTFFields

    def merges(self, block: int, tokens: TokenSet) -> int:
        """How many tokens merge in `block`."""
        n = tokens.x.shape[1]
        if block not in self.fields.blocks(self.backbone):
            return 0
        r = int(self.fields.r if self.fields.r >= 1 else tokens.patches * self.fields.r)
        r = n - FEWEST if n - r < FEWEST else r
        return max(0, min(r, tokens.patches // 2))

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """The map where tokens merge; attention in proportion to sizes once they have."""
        r, bias = self.merges(block, tokens), self.bias(tokens)
        if not r:
            return AttentionRequest(bias=bias)
        ahead = functools.partial(self.merge_ahead, r) if self.fields.ahead != "after" else None
        return AttentionRequest(frozenset({"weights"}), bias, look_ahead=ahead)

    def bias(self, tokens: TokenSet) -> Float[Array, "b 1 1 n"] | None:
        """What attention adds for the tokens' sizes."""
        return log_sizes(tokens) if self.fields.proportional_attention else None

    def merge_ahead(
        self, r: int, tokens: TokenSet, view: AttentionView
    ) -> tuple[TokenSet, AttentionRequest]:
        """The merged tokens, and attention by the merged map or anew."""
        plan, pool = self.plan(tokens, received(view.weights), r)
        weights = view.weights
        for merge, by in zip(plan, pool, strict=True):
            tokens = merge_weighted(tokens, merge, by)
            weights = pooled_map(weights, by, merge)
        if self.fields.ahead == "precise":
            return tokens, AttentionRequest(bias=self.bias(tokens))
        return tokens, AttentionRequest(weights=weights)

    def after_attention(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Remembers what each token received, to merge after the feed-forward."""
        if self.fields.ahead != "after" or not self.merges(block, tokens):
            return tokens
        return tokens.put_aside(received=received(attention.weights))

    def after_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Merges here if it is not done ahead."""
        r = self.merges(block, tokens)
        if "received" not in tokens.aside or not r:
            return tokens
        aside = dict(tokens.aside)
        plan, pool = self.plan(tokens, aside.pop("received"), r)
        tokens = tokens.replace(aside=aside)
        for merge, by in zip(plan, pool, strict=True):
            tokens = merge_weighted(tokens, merge, by)
        return tokens

    def plan(
        self, tokens: TokenSet, attention: Float[Array, "b n"], r: int
    ) -> tuple[tuple[Merge, ...], tuple[Float[Array, "b _"], ...]]:
        """The merges one after another, and for each the weights of its means."""
        fields, sizes = self.fields, sizes_of(tokens)
        weights = sizes / sizes.max(axis=1, keepdims=True)
        if fields.pooling == "attention":
            weights = weights * attention
        even, odd = alternate(tokens.prefix)
        pair = edge_weights(tokens, attention, fields)[:, even, odd]
        first = places(tokens.x, slice(0, tokens.prefix))
        a, b = places(tokens.x, even), places(tokens.x, odd)
        if not fields.bidirectional:
            return (merge_strongest(best_edges(pair), r, a, b, first),), (weights,)
        one = merge_strongest(best_edges(pair), r // 2, a, b, first)
        # What is left of A lies between the class tokens and B, in its order.
        stay = one.kept[:, tokens.prefix : one.untouched]
        edges = best_edges(jnp.swapaxes(gather(pair, (stay - even.start) // 2), 1, 2))
        after = places(one.kept)
        ends = (slice(tokens.prefix, one.untouched), slice(one.untouched, None))
        a, b = (after[:, end] for end in ends)
        two = merge_back(edges, r - r // 2, a, b, first)
        return (one, two), (weights, added_sizes(weights, one))


def received(weights: Float[Array, "b h n n"]) -> Float[Array, "b n"]:
    """The attention that each token receives, the mean over heads and queries."""
    return jax.lax.stop_gradient(weights.mean(axis=(1, 2)))


def edge_weights(
    tokens: TokenSet, attention: Float[Array, "b n"], fields: MCTFFields
) -> Float[Array, "b n n"]:
    """The weight of every pair of tokens (equation 6)."""
    pair = jnp.ones(())
    if fields.tau_sim:
        direction = unit(tokens.x)
        cosine = (products(direction, direction) + 1) / 2
        pair = jnp.maximum(cosine, 0.0) ** (1 / fields.tau_sim)
    for value, tau in ((attention, fields.tau_info), (sizes_of(tokens), fields.tau_size)):
        if tau:
            share = 1 / value
            share = share / share.max(axis=1, keepdims=True)
            pair = pair * (share[:, :, None] * share[:, None, :]) ** (1 / tau)
    return jnp.broadcast_to(pair, (*tokens.x.shape[:2], tokens.x.shape[1]))
