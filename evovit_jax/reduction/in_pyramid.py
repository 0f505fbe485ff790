"""Methods that work inside each stage of a pyramid, and give it its whole grid back at the end.

A subsampling takes every other row and column, so it needs a token in every place. Within a stage
tokens may leave or merge; after its last block every place takes the value of the token that holds
it, and where it was dropped the value that it had then. The last stage of a network, the only one
of a flat network, ends with the reduced set.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from evovit_jax.reduction.at_locations import Located
from evovit_jax.reduction.base import AttentionView
from evovit_jax.reduction.tokens import TokenSet, follow, spread


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StageGrid:
    """The whole grid of a stage in which tokens have left or merged.

    Attributes:
      x: `[b, n, d]`, the value of every place before the last reduction.
      source: int32 `[b, n]`, the token of the set that holds each place, negative where none does.
      before: the source map of the whole grid.
    """

    x: Float[Array, "b n d"]
    source: Int[Array, "b n"]
    before: Int[Array, "b N"]

    def filled(self, tokens: TokenSet) -> Float[Array, "b n d"]:
        """A token for every place: the one that holds it, or its last value if it was dropped."""
        held = spread(tokens.x, self.source)
        return jnp.where((self.source >= 0)[..., None], held, self.x)


def stage_grid(tokens: TokenSet) -> StageGrid | None:
    """The whole grid, where tokens have left or merged in this stage, else None."""
    return tokens.aside.get("stage_grid")


class WithinStages(Located):
    """A method that reduces between attention and feed-forward, and may do so inside stages.

    Subclasses override `reduce`, which is called where `reduces` says so.
    """

    not_in_pyramids = None

    def reduce(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """The reduced set."""
        del block, attention
        return tokens

    def ended(self, moves: Int[Array, "b n"], n: int) -> Int[Array, "b n"]:
        """`moves` of a reduction to n tokens, less those whose target ends with the stage."""
        del n
        return moves

    def after_attention(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Reduces; in a stage that is subsampled, the grid is kept track of."""
        if not self.reduces(block, tokens):
            return tokens
        if self.backbone.stage(block) == len(self.backbone.stage_depths) - 1:
            return self.reduce(block, tokens, attention)
        places = jnp.arange(tokens.x.shape[1], dtype=jnp.int32)
        places = jnp.broadcast_to(places, tokens.x.shape[:2])
        grid = stage_grid(tokens) or StageGrid(tokens.x, places, tokens.source)
        # Reducing a set in which every token is its own source shows where each one goes.
        reduced = self.reduce(block, tokens.replace(source=places), attention)
        moves = reduced.source
        grid = dataclasses.replace(
            grid,
            x=grid.filled(tokens),
            source=follow(grid.source, self.ended(moves, reduced.x.shape[1])),
        )
        return reduced.replace(source=follow(tokens.source, moves)).put_aside(stage_grid=grid)

    def after_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """The whole grid at the end of a stage."""
        grid = stage_grid(tokens)
        if grid is None or not self.backbone.ends_stage(block):
            return tokens
        return tokens.replace(x=grid.filled(tokens), source=grid.before, sizes=None).put_aside(
            stage_grid=None
        )
