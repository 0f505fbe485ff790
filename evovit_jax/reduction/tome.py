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

from evovit_jax.errors import UserError
from evovit_jax.reduction.at_locations import LocatedFields
from evovit_jax.reduction.base import AttentionView, Backbone, check_choice
from evovit_jax.reduction.card import OPTIONAL, Card
from evovit_jax.reduction.knob import Knob, numbers_leaving
from evovit_jax.reduction.matching import bipartite, merge_by_size
from evovit_jax.reduction.merging import Merging, mean_heads
from evovit_jax.reduction.tokens import TokenSet

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
      metric: "keys", or "rawkeys" for those before rotary positions turn them.
      unmerged_order: in what order the rest of A goes on: "position", or "similarity", most similar
        first, which the authors' code does without a class token; by default as that does.
      pooling_counts_sizes: whether a network that pools its tokens counts them by size there.
    """

    keep_rate: float | tuple[float, ...] | None = None
    r: int | tuple[int, ...] | None = None
    inflection: float = 0.0
    proportional_attention: bool = True
    metric: str = "keys"
    unmerged_order: str | None = None
    pooling_counts_sizes: bool = True

    def __post_init__(self):
        check_choice("tome metric", self.metric, ("keys", "rawkeys"))
        check_choice(
            "tome unmerged_order", self.unmerged_order or "position", ("position", "similarity")
        )
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

    def check(self, backbone: Backbone) -> None:
        """Refuses settings that do not fit the network."""
        self.blocks(backbone)
        self.schedule(backbone.depth, 1)

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


class ToMe(Merging):
    """Bipartite soft matching of keys, and size-weighted merging."""

    card = Card(
        title="ToMe",
        paper="2210.09461",
        summary="merges similar tokens in every block",
        training=OPTIONAL,
        score="similar keys",
        fused_attention="until sizes count",
        in_pyramids="without attention biases",
        equal_to=("facebookresearch/ToMe", "JoakimHaurum/TokenReduction"),
        notes="CC-BY-NC-4.0; MIT",
    )
    knob = Knob("r", numbers_leaving)
    Fields = ToMeFields

    def merged(self, block: int, tokens: TokenSet) -> int:
        """How many of `tokens` merge into others at `block`."""
        if self.fields.keep_rate is None:
            patches = tokens.grid[0] * tokens.grid[1]
            r = self.fields.schedule(self.backbone.depth, patches)[block]
        else:
            location = self.location(block)
            r = 0 if location is None else tokens.patches - self.count(location, tokens)
        return min(r, tokens.patches // 2)

    def reduces(self, block: int, tokens: TokenSet) -> bool:
        """Whether tokens merge at `block`."""
        return self.merged(block, tokens) > 0

    def reduce(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Merges the most similar tokens."""
        keys = attention.keys if attention.raw_keys is None else attention.raw_keys
        order = self.fields.unmerged_order or ("position" if tokens.prefix else "similarity")
        plan = bipartite(
            mean_heads(keys),
            self.merged(block, tokens),
            tokens.prefix,
            rest_by_score=order == "similarity",
        )
        return merge_by_size(tokens, plan)

    def as_pooled(self, tokens: TokenSet) -> TokenSet:
        """Without sizes, if pooling is not to count them."""
        return tokens if self.fields.pooling_counts_sizes else tokens.replace(sizes=None)
