"""Representation shift: drops the tokens that a block changes least.

Choi et al., "Representation Shift: Unifying Token Compression with FlashAttention", ICCV 2025
(arXiv:2508.00367). After the blocks at `locations` a patch token's score is the length of what the
feed-forward branch added to it, `||F(x)_i||_2`, LayerScale included. The
`ceil(keep_rate * patch tokens at that block)` tokens of the largest scores stay, in raster order.

Nothing of the attention is looked at, so every block may use a fused kernel, and the network needs
no class token. It is training-free.
"""

import math

import jax.numpy as jnp

from evovit_jax.reduction.at_locations import Located
from evovit_jax.reduction.base import AttentionView
from evovit_jax.reduction.card import NOT_NEEDED, Card
from evovit_jax.reduction.tokens import TokenSet, ascending, keep, top_k


class Shift(Located):
    """Pruning by how far the feed-forward moves a token."""

    card = Card(
        title="Representation Shift",
        paper="2508.00367",
        summary="drops what a feed-forward changes least",
        training=NOT_NEEDED,
        score="change by the feed-forward; no class token",
    )
    reads_patches_of_last_block = True
    not_in_pyramids = "a dropped token leaves a hole in the grid that the next stage subsamples"

    def count(self, location: int, tokens: TokenSet) -> int:
        """Patch tokens kept."""
        return math.ceil(self.fields.rate(location) * tokens.patches)

    def after_attention(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Remembers the tokens as they are before the feed-forward of a location."""
        del attention
        if not self.reduces(block, tokens):
            return tokens
        return tokens.put_aside(before=tokens.x)

    def after_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Drops what moved least."""
        if not self.reduces(block, tokens):
            return tokens
        aside = dict(tokens.aside)
        before = aside.pop("before").astype(jnp.float32)
        moves = (tokens.x.astype(jnp.float32) - before)[:, tokens.prefix :]
        _, index = top_k(jnp.linalg.norm(moves, axis=-1), self.count(self.location(block), tokens))
        return keep(tokens.replace(aside=aside), ascending(index), block)
