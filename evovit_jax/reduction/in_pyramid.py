"""Methods that work inside each stage of a pyramid, and give it its whole grid back at the end.

A subsampling takes every other row and column, so it needs a token in every place. Within a stage
tokens may leave or merge; after its last block every place takes the value of the token that holds
it, and where it was dropped the value that it had then. The last stage of a network, the only one
of a flat network, ends with the reduced set.
"""

import jax.numpy as jnp
from jaxtyping import Array, Int

from evovit_jax.reduction.at_locations import Located
from evovit_jax.reduction.base import AttentionView
from evovit_jax.reduction.tokens import TokenSet, follow, spread


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
        start = {"x": tokens.x, "source": places, "before": tokens.source}
        grid = tokens.aside.get("grid", start)
        # Reducing a set in which every token is its own source shows where each one goes.
        reduced = self.reduce(block, tokens.replace(source=places), attention)
        moves = reduced.source
        grid = {
            "x": whole_grid(tokens, grid),
            "source": follow(grid["source"], self.ended(moves, reduced.x.shape[1])),
            "before": grid["before"],
        }
        return reduced.replace(source=follow(tokens.source, moves)).put_aside(grid=grid)

    def after_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """The whole grid at the end of a stage."""
        if not self.backbone.ends_stage(block) or "grid" not in tokens.aside:
            return tokens
        aside = dict(tokens.aside)
        grid = aside.pop("grid")
        return tokens.replace(
            x=whole_grid(tokens, grid), source=grid["before"], sizes=None, aside=aside
        )


def whole_grid(tokens: TokenSet, grid: dict[str, Array]) -> Array:
    """A token for every place: the one that holds it, or its last value where it was dropped."""
    held = spread(tokens.x, grid["source"])
    return jnp.where((grid["source"] >= 0)[..., None], held, grid["x"])
