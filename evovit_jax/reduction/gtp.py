"""GTP: what leaves in a block is first propagated, along a graph, to what stays.

Xu et al., "GTP-ViT: Efficient Vision Transformers via Graph-based Token Propagation", WACV 2024
(arXiv:2311.03035), written from the paper.

1. Once, on the patch embeddings with their positions, a graph W: every patch and its 8 neighbours
   in the grid ("spatial"), its k most similar by cosine ("semantic"), or both ("mixed"), no patch
   with itself, as `D^-1/2 W D^-1/2` with D the sums of the rows (Section 3.3).
2. Between attention and feed-forward of every block, the `dropped` patches of the lowest score
   leave. "mixed": attention of a patch to itself, the largest of all heads, times what it receives
   from all tokens, likewise (Section 3.2, equation 4); "image" the latter alone, "diagonal" the
   former, "class" the class token's.
3. Before that, `x_kept += alpha * W[kept, dropped] x_dropped`, and sizes likewise (equation 8);
   W goes on as `W[kept, kept]`. Attention is in proportion to sizes.
4. With `attention_kept` under 1, in each head only that share of the map's largest entries is
   left, not normalised anew.

`graph="mean"`: the mean of what leaves goes on as one more token, in every block. The order
afterwards is that of the falling score.

Published, without training: DeiT-B at 8 tokens a block 81.46 (dense 81.8).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.parallel.per_device import per_device
from evovit_jax.reduction import base
from evovit_jax.reduction.base import AttentionRequest, AttentionView, Backbone, Reducer
from evovit_jax.reduction.card import NOT_NEEDED, Card
from evovit_jax.reduction.knob import Knob, numbers_leaving
from evovit_jax.reduction.matching import sizes_of
from evovit_jax.reduction.merging import log_sizes
from evovit_jax.reduction.token_graph import GRAPHS, Graph, make_graph
from evovit_jax.reduction.tokens import (
    TokenSet,
    columns,
    follow,
    gather,
    keep,
    kept_moves,
    order_by,
    with_prefix,
)

# By default a network drops this share of its patches: 8 a block of 196 in 12 blocks.
DEFAULT_DROPPED = 0.5
SCORES = ("mixed", "image", "diagonal", "class")


@dataclasses.dataclass(frozen=True)
class GTPFields(base.Fields):
    """Settings of GTP.

    Attributes:
      dropped: patches that leave in a block; a number, or one a block. By default half of the
        patches over all blocks.
      graph: "mixed", "semantic", "spatial", or "mean".
      neighbours: of a patch in the semantic graph.
      alpha: how much of what leaves is propagated.
      score: "mixed", "image", "diagonal" or "class".
      attention_kept: share of each head's map that is left, in (0, 1].
      proportional_attention: whether attention counts a token by its size.
    """

    dropped: int | tuple[int, ...] | None = None
    graph: str = "mixed"
    neighbours: int = 8
    alpha: float = 0.1
    score: str = "mixed"
    attention_kept: float = 1.0
    proportional_attention: bool = True

    def __post_init__(self):
        base.check_rate("gtp attention_kept", self.attention_kept)
        numbers = self.dropped if isinstance(self.dropped, tuple) else (self.dropped or 0,)
        if min(numbers, default=-1) < 0:
            raise UserError(f"gtp dropped must be whole numbers of tokens, got {self.dropped!r}")
        if self.neighbours < 1:
            raise UserError(f"gtp neighbours must be 1 or more, got {self.neighbours!r}")
        base.check_choice("gtp score", self.score, SCORES)
        base.check_choice("gtp graph", self.graph, (*GRAPHS, "mean"))

    def check(self, backbone: Backbone) -> None:
        """Refuses numbers that are not one a block, and scores that the network does not have."""
        if isinstance(self.dropped, tuple) and len(self.dropped) != backbone.depth:
            raise UserError(
                f"gtp dropped has {len(self.dropped)} members for {backbone.depth} blocks"
            )
        if self.score == "class" and not backbone.prefix:
            raise UserError("gtp score=class needs a class token; use score=mixed or score=image")

    def leaving(self, block: int, depth: int, tokens: TokenSet) -> int:
        """How many patches leave in `block`; one stays at least."""
        n = self.dropped
        if n is None:
            n = int(DEFAULT_DROPPED * tokens.grid[0] * tokens.grid[1] / depth)
        return min(n[block] if isinstance(n, tuple) else n, tokens.patches - 1)


class GTP(Reducer):
    """Pruning with graph-based propagation."""

    card = Card(
        title="GTP-ViT",
        paper="2311.03035",
        summary="propagates what leaves along a graph to what stays",
        training=NOT_NEEDED,
        score="attention to itself and received",
        fused_attention="no",
        equal_to=("Ackesnal/GTP-ViT",),
        notes="Apache-2.0",
    )
    knob = Knob("dropped", numbers_leaving)
    Fields = GTPFields

    def start(self, tokens: TokenSet) -> TokenSet:
        """Makes the graph."""
        if self.fields.graph == "mean":
            return tokens
        patches = tokens.x[:, tokens.prefix :]
        kind, neighbours = self.fields.graph, self.fields.neighbours
        return tokens.put_aside(graph=make_graph(patches, tokens.grid, kind, neighbours))

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """The map where patches leave, thinned if asked for; in proportion to sizes."""
        thinned = None
        if self.fields.attention_kept < 1:
            thinned = functools.partial(thin, share=self.fields.attention_kept)
        leaving = self.fields.leaving(block, self.backbone.depth, tokens)
        return AttentionRequest(
            needs=frozenset({"weights"}) if leaving else frozenset(),
            bias=log_sizes(tokens) if self.fields.proportional_attention else None,
            normalise=thinned,
        )

    def after_attention(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Propagates, and drops."""
        leaving = self.fields.leaving(block, self.backbone.depth, tokens)
        if not leaving:
            return tokens
        scores = SCORERS[self.fields.score](attention.weights)[:, tokens.prefix :]
        order, count = order_by(scores), tokens.patches - leaving
        stay, leave = order[:, :count], order[:, count:]
        if self.fields.graph == "mean":
            return with_mean(tokens, stay, leave)
        return propagate(tokens, stay, leave, block, self.fields.alpha)


def received(weights: Float[Array, "b h n n"]) -> Float[Array, "b n"]:
    """What each token receives from all, in the head that gives it most."""
    return weights.sum(axis=2).max(axis=1)


def diagonal(weights: Float[Array, "b h n n"]) -> Float[Array, "b n"]:
    """The attention of each token to itself, in the head where it is largest."""
    return jnp.diagonal(weights, axis1=2, axis2=3).max(axis=1)


SCORERS = {
    "mixed": lambda weights: diagonal(weights) * received(weights),
    "image": received,
    "diagonal": diagonal,
    "class": lambda weights: weights[:, :, 0].max(axis=1),
}


def propagate(tokens: TokenSet, stay: Array, leave: Array, block: int, alpha: float) -> TokenSet:
    """What stays, with its share of what leaves."""
    rows = gather(tokens.aside["graph"].weights, stay)
    values = jnp.concatenate([tokens.x.astype(jnp.float32), sizes_of(tokens)[..., None]], axis=-1)
    leaving = gather(values[:, tokens.prefix :], leave)
    gain = alpha * jnp.einsum("bkl,bld->bkd", columns(rows, leave), leaving, precision="highest")
    gain = jnp.pad(gain, ((0, 0), (tokens.prefix, 0), (0, 0)))
    kept = keep(tokens.replace(sizes=sizes_of(tokens)), stay, block)
    return kept.replace(
        x=(kept.x.astype(jnp.float32) + gain[..., :-1]).astype(tokens.x.dtype),
        sizes=kept.sizes + gain[..., -1],
    ).put_aside(graph=Graph(columns(rows, stay)))


def with_mean(tokens: TokenSet, stay: Array, leave: Array) -> TokenSet:
    """What stays, and the mean of what leaves as the last token."""
    whole = with_prefix(stay, tokens.prefix)
    leaving = gather(tokens.x[:, tokens.prefix :], leave).astype(jnp.float32)
    mean = leaving.mean(axis=1, keepdims=True).astype(tokens.x.dtype)
    moves = kept_moves(whole, tokens.x.shape[1], elsewhere=whole.shape[1])
    return tokens.replace(
        x=jnp.concatenate([gather(tokens.x, whole), mean], axis=1),
        source=follow(tokens.source, moves),
        place=tokens.places_at(whole, new=1),
    )


def thin(logits: Float[Array, "b h n n"], share: float) -> Float[Array, "b h n n"]:
    """The softmax, of which in each head the smallest entries are 0, but for a share."""
    weights = jax.nn.softmax(logits, axis=-1)
    n = logits.shape[-1]
    smallest = int(n * n * (1 - share))

    def largest(weights: Float[Array, "b h n n"]) -> Float[Array, "b h 1 1"]:
        flat = jnp.sort(weights.reshape(*weights.shape[:2], -1), axis=-1)
        return flat[..., max(smallest, 1) - 1, None, None]

    return jnp.where(weights >= per_device(largest, weights), weights, 0.0)
