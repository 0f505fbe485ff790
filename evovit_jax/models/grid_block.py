"""Blocks whose attention needs every place of the grid, so that no token can leave before them.

ConViT's first blocks and VOLO's outlookers are such blocks. Tested in tests/models/convit_test.py.
"""

from collections.abc import Callable, Iterable

from flax import nnx

from evovit_jax.models.layers import rematerialised
from evovit_jax.models.vit import Block, ViTConfig
from evovit_jax.reduction.base import NOTHING_ASKED, AttentionRequest, AttentionView
from evovit_jax.reduction.tokens import TokenSet


class GridBlock(Block):
    """A pre-norm block with an attention of its own, of which nothing can be asked."""

    def __init__(self, config: ViTConfig, number: int, attention: Callable, *, rngs: nnx.Rngs):
        """A block with the norms and the MLP of `config`.

        Args:
          config: of a plain block in this place.
          number: of the block in the network, for stochastic depth.
          attention: a module; of normalised tokens `[b, rows * columns, d]` and `(rows, columns)`
            it returns as many.
          rngs: streams of the weights.
        """
        super().__init__(config, number, rngs=rngs)
        self.attn = attention

    def attend(
        self, block: int, tokens: TokenSet, request: AttentionRequest = NOTHING_ASKED
    ) -> tuple[TokenSet, AttentionView]:
        """The attention half of block number `block`, and an empty view."""
        del request
        branch = rematerialised(lambda x: self.attn(self.norm1(x), tokens.grid), self.remat)
        return self._add(tokens, branch(tokens.x), self.ls1, 2 * block), AttentionView()


def through_blocks(blocks: Iterable[Block], tokens: TokenSet, *, first: int = 0) -> TokenSet:
    """The tokens after blocks outside of a walk, the first of which has the number `first`.

    The number decides what stochastic depth draws.
    """
    for number, block in enumerate(blocks, first):
        tokens, _ = block.attend(number, tokens, NOTHING_ASKED)
        tokens = block.feed_forward(number, tokens)
    return tokens
