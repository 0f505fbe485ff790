"""EViT: keeps the tokens that the class token attends to, and fuses the others into one.

Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token
Reorganizations", ICLR 2022 (arXiv:2202.07800). Between attention and feed-forward of a location,
the class token's attention to each patch token, the mean over heads, is its attentiveness
`a_i` (Section 3.2). The `ceil(keep_rate * patch tokens at that block)` most attentive tokens stay.
With `fuse`, one token more, `sum(a_i * x_i)` over the others, not normalised, goes on at the end
of the sequence (Section 3.3, equation 3); later locations rank it, and may drop it, like any other.

Published recipe (DeiT-S, locations 3, 6 and 9): DeiT's, 300 epochs, batch 2048, the keep rate 1 for
10 epochs, then falling along a cosine over 100 to its value. DeiT-S fused at 0.9 to 0.5: top-1
79.8, 79.8, 79.5, 78.9, 78.5.

`rounding="grid"` takes `int(patches * keep_rate**k)` at the k-th location instead, of all the
image's patches, as the token-reduction study does (Haurum et al., 2023, arXiv:2308.04657).

In a pyramid the tokens that left come back as they were at the end of each stage, and the fused
token ends there: a subsampling needs the whole grid.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from evovit_jax.errors import UserError
from evovit_jax.reduction.at_locations import RankedFields
from evovit_jax.reduction.base import (
    NOTHING_ASKED,
    AttentionRequest,
    AttentionView,
)
from evovit_jax.reduction.card import OPTIONAL, Card
from evovit_jax.reduction.in_pyramid import WithinStages
from evovit_jax.reduction.tokens import (
    TokenSet,
    among_top,
    follow,
    gather_and_sum,
    keep,
    kept_moves,
    top_k,
    with_prefix,
)


@dataclasses.dataclass(frozen=True)
class EViTFields(RankedFields):
    """Settings of EViT beside those of `RankedFields`.

    Attributes:
      fuse: whether the tokens that leave go on as one.
      rounding: "block", the paper's `ceil(keep_rate * tokens reaching the block)`, or "grid".
    """

    fuse: bool = True
    rounding: str = "block"

    def __post_init__(self):
        super().__post_init__()
        if self.rounding not in ("block", "grid"):
            raise UserError(f"evit rounding must be block or grid, got {self.rounding!r}")


class EViT(WithinStages):
    """Token reorganisation by class attention."""

    card = Card(
        title="EViT",
        paper="2202.07800",
        summary="keeps what the class token attends to, fuses (or drops) the rest",
        training=OPTIONAL,
        score="class attention",
        in_pyramids="with a class token",
        equal_to=("youweiliang/evit", "JoakimHaurum/TokenReduction"),
        notes="Apache-2.0; MIT",
    )
    Fields = EViTFields
    needs_class_token = True

    def count(self, location: int, tokens: TokenSet) -> int:
        """Patch tokens kept, the fused one not counted."""
        if self.fields.rounding == "grid":
            return super().count(location, tokens)
        return math.ceil(self.fields.rate(location) * tokens.patches)

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """Class attention where tokens leave."""
        return self.class_row() if self.reduces(block, tokens) else NOTHING_ASKED

    def reduce(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Keeps the attentive tokens, and fuses the others or drops them."""
        scores = attention.patch_scores(tokens.prefix)
        _, index = top_k(scores, self.count(self.location(block), tokens))
        if not self.fields.fuse:
            return keep(tokens, index, block)
        return fuse(tokens, index, scores)

    def ended(self, moves: Int[Array, "b n"], n: int) -> Int[Array, "b n"]:
        """Tokens that went into the fused one are not part of it any more after the stage."""
        return jnp.where(moves == n - 1, jnp.int32(-1), moves) if self.fields.fuse else moves


def fuse(tokens: TokenSet, index: Int[Array, "b k"], scores: Float[Array, "b p"]) -> TokenSet:
    """Keeps the patch tokens at `index`; the others become one last token, `sum(score * x)`."""
    prefix = tokens.prefix
    weights = jnp.where(among_top(scores, index), 0.0, scores)
    whole = with_prefix(index, prefix)
    moves = kept_moves(whole, tokens.x.shape[1], elsewhere=whole.shape[1])
    return tokens.replace(
        x=gather_and_sum(tokens.x, whole, weights),
        source=follow(tokens.source, moves),
        place=tokens.places_at(whole, new=1),
    )
