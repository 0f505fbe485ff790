"""ToMe: merges the most similar tokens in every block.

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023 (arXiv:2210.09461), written from the
paper. Between attention and feed-forward of each block (Section 3):

1. Tokens alternate between two sets, A (even places) and B (odd places).
2. Each token of A has one edge, to the token of B whose key, the mean over heads, is nearest by
   cosine similarity.
3. The tokens of the r most similar edges merge into their partners: the mean, weighted by how many
   patches each token stands for. Class tokens have no edges. r is at most half of the tokens.
4. Attention counts a token as often as it has patches: `softmax(q k^T / sqrt(d) + log size)`
   (proportional attention, Section 3.2, equation 1).

The order afterwards: what is left of A, then B, class tokens first. `tokens.spread` unmerges: it
gives every input token the value of the token that holds it.

`r` is a number for all blocks, or a list with one for each. An inflection f in [-1, 1] turns the
number into a schedule with that mean, block l of L merging `int(lo + (hi - lo) * l / (L - 1))`
with `lo = int(r * (1 - f))` and `hi = 2 * r - lo`: -1 falls from 2r to 0 (the paper's decreasing
schedule), 1 rises. `keep_rate` merges at `locations` only, down to the counts of the
token-reduction study (`int(patches * keep_rate**k)`, Haurum et al., 2023), where half of the
tokens allow it.

In a pyramid tokens unmerge at the end of each stage: a subsampling needs the whole grid.

Published, without training: ViT-B at r=13 82.60 (V100, 511 images/s); trained DeiT-S at r=13 79.36.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from evovit_jax.errors import UserError
from evovit_jax.reduction.at_locations import LocatedFields
from evovit_jax.reduction.base import (
    AttentionRequest,
    AttentionView,
    Backbone,
)
from evovit_jax.reduction.in_pyramid import WithinStages
from evovit_jax.reduction.tokens import (
    TokenSet,
    ascending,
    follow,
    gather,
    group_sum,
    order_by,
    scatter_set,
)

# By default a network merges this share of its patches: r = 13 for 196 patches and 12 blocks.
DEFAULT_MERGED = 0.8


@dataclasses.dataclass(frozen=True)
class ToMeFields(LocatedFields):
    """Settings of ToMe.

    Attributes:
      r: tokens merged in a block; a number, or one a block. By default four fifths of the patches
        over all blocks.
      inflection: how r changes over the blocks, in [-1, 1]; 0 means it does not.
      proportional_attention: whether attention counts a token by its size; the paper leaves it out
        for networks trained as masked autoencoders.
      keep_rate: instead of r: the share of the tokens that a location leaves; None for r.
      locations: with `keep_rate`, the blocks that merge.
    """

    keep_rate: float | tuple[float, ...] | None = None
    r: int | tuple[int, ...] | None = None
    inflection: float = 0.0
    proportional_attention: bool = True

    def __post_init__(self):
        if self.keep_rate is not None:
            super().__post_init__()
            if self.r is not None:
                raise UserError("tome: give r or keep_rate, not both")
        elif self.locations is not None:
            raise UserError("tome: locations go with keep_rate; r is for every block")
        numbers = self.r if isinstance(self.r, tuple) else (self.r or 0,)
        if not all(isinstance(r, int) and r >= 0 for r in numbers):
            raise UserError(f"tome r must be whole numbers of tokens, got {self.r!r}")
        if not -1 <= self.inflection <= 1:
            raise UserError(f"tome inflection must be in [-1, 1], got {self.inflection!r}")
        if self.inflection and (isinstance(self.r, tuple) or self.keep_rate is not None):
            raise UserError("tome: inflection goes with one number r")

    def schedule(self, depth: int, patches: int) -> tuple[int, ...]:
        """r of each block, for a network of `depth` blocks and images of `patches` patches.

        Raises:
          UserError: if r is a list, and not of `depth` members.
        """
        if isinstance(self.r, tuple):
            if len(self.r) != depth:
                raise UserError(f"tome r has {len(self.r)} members for {depth} blocks")
            return self.r
        r = int(DEFAULT_MERGED * patches / depth) if self.r is None else self.r
        low = int(r * (1 - self.inflection))
        high = 2 * r - low
        return tuple(int(low + (high - low) * i / max(1, depth - 1)) for i in range(depth))


class ToMe(WithinStages):
    """Bipartite soft matching of keys, and size-weighted merging."""

    Fields = ToMeFields

    def __init__(self, backbone: Backbone, fields: ToMeFields, *, rngs: nnx.Rngs):
        super().__init__(backbone, fields, rngs=rngs)
        if backbone.is_pyramid and not backbone.prefix:
            raise UserError(
                "reduction tome does not run in this network: its attention biases belong to "
                "places of the grid, and a merged token has none; use one without them (evo_levit)"
            )
        fields.schedule(backbone.depth, 1)  # refuse settings that do not fit the network

    def merged(self, block: int, tokens: TokenSet) -> int:
        """How many of `tokens` merge into others at `block`."""
        if self.fields.keep_rate is None:
            patches = tokens.grid[0] * tokens.grid[1]
            r = self.fields.schedule(self.backbone.depth, patches)[block]
        else:
            location = self.location(block)
            r = 0 if location is None else tokens.patches - self.count(location, tokens)
        return min(r, tokens.patches // 2)

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """Keys where tokens merge; attention in proportion to sizes once they have."""
        needs = frozenset({"keys"}) if self.reduces(block, tokens) else frozenset()
        bias = None
        if self.fields.proportional_attention and tokens.sizes is not None:
            bias = jnp.log(tokens.sizes)[:, None, None]
        return AttentionRequest(needs=needs, bias=bias)

    def reduces(self, block: int, tokens: TokenSet) -> bool:
        """Whether tokens merge at `block`."""
        return self.merged(block, tokens) > 0

    def reduce(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Merges the most similar tokens."""
        metric = attention.keys.astype(jnp.float32).mean(axis=1)
        return merge(tokens, match(metric, self.merged(block, tokens), tokens.prefix))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["unmerged", "merged", "partner"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Matching:
    """Which tokens merge: places within A (even places) and B (odd places).

    Attributes:
      unmerged: int32 `[b, a - r]`, the tokens of A that stay, in their order.
      merged: int32 `[b, r]`, those that merge, the most similar first.
      partner: int32 `[b, r]`, into which token of B.
    """

    unmerged: Int[Array, "b u"]
    merged: Int[Array, "b r"]
    partner: Int[Array, "b r"]


def match(metric: Float[Array, "b n c"], r: int, prefix: int) -> Matching:
    """The r most similar edges between tokens in even and in odd places.

    The first `prefix` tokens, two at most, have none.
    """
    norm = jnp.linalg.norm(metric, axis=-1, keepdims=True)
    metric = jax.lax.stop_gradient(metric / jnp.maximum(norm, 1e-12))
    even, odd = metric[:, 0::2], metric[:, 1::2]
    similarity = jnp.einsum("bac,boc->bao", even, odd, precision="highest")
    row, column = (jax.lax.broadcasted_iota(jnp.int32, similarity.shape, i) for i in (1, 2))
    is_class = (row == 0) & (prefix > 0) | (column == 0) & (prefix > 1)
    similarity = jnp.where(is_class, -jnp.inf, similarity)
    partner = similarity.argmax(axis=-1).astype(jnp.int32)
    order = order_by(similarity.max(axis=-1))
    merged = order[:, :r]
    unmerged = ascending(order[:, r:])
    return Matching(unmerged=unmerged, merged=merged, partner=gather(partner, merged))


def merge(tokens: TokenSet, matching: Matching) -> TokenSet:
    """Every merged token added to its partner, weighted by their sizes."""
    x, prefix = tokens.x, tokens.prefix
    sizes = jnp.ones(x.shape[:2]) if tokens.sizes is None else tokens.sizes
    odd_sizes = sizes[:, 1::2]
    merged_sizes = gather(sizes[:, 0::2], matching.merged)
    merged = gather(x[:, 0::2], matching.merged).astype(jnp.float32) * merged_sizes[..., None]
    # Values and sizes in one sum.
    gain = jnp.concatenate([merged, merged_sizes[..., None]], axis=-1)
    gain = group_sum(gain, matching.partner, odd_sizes.shape[1])
    new_sizes = odd_sizes + gain[..., -1]
    odd = x[:, 1::2].astype(jnp.float32) * odd_sizes[..., None] + gain[..., :-1]
    odd = (odd / new_sizes[..., None]).astype(x.dtype)
    even, even_sizes = (gather(a[:, 0::2], matching.unmerged) for a in (x, sizes))
    return tokens.replace(
        x=in_order(even, odd, prefix),
        sizes=in_order(even_sizes, new_sizes, prefix),
        source=follow(tokens.source, merge_moves(matching, x.shape[1], prefix)),
    )


def in_order(even: Array, odd: Array, prefix: int) -> Array:
    """What is left of A, then B; a second class token (the first of B) follows the first."""
    if prefix < 2:
        return jnp.concatenate([even, odd], axis=1)
    return jnp.concatenate([even[:, :1], odd[:, :1], even[:, 1:], odd[:, 1:]], axis=1)


def merge_moves(matching: Matching, n: int, prefix: int) -> Int[Array, "b n"]:
    """Where each of n tokens goes in a merge."""
    kept = matching.unmerged.shape[1]
    numbers = jnp.arange(kept + n // 2, dtype=jnp.int32)[None]
    # The places of the tokens of A that stay, and of B, in the order of `in_order`.
    order = in_order(numbers[:, :kept], numbers[:, kept:], prefix)
    places = jnp.argsort(order, axis=1).astype(jnp.int32)
    places = jnp.broadcast_to(places, (matching.unmerged.shape[0], places.shape[1]))
    even_places, odd_places = places[:, :kept], places[:, kept:]
    even = jnp.zeros((places.shape[0], n - n // 2), jnp.int32)
    even = scatter_set(even, matching.unmerged, even_places)
    even = scatter_set(even, matching.merged, gather(odd_places, matching.partner))
    moves = jnp.zeros((places.shape[0], n), jnp.int32)
    return moves.at[:, 0::2].set(even).at[:, 1::2].set(odd_places)
