"""What a model returns beside its logits; jit prunes what nobody reads.

Tested in tests/models/vit_test.py.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from evovit_jax.errors import UserError
from evovit_jax.reduction.dense import on_grid
from evovit_jax.reduction.tokens import TokenSet


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["features", "pooled", "token_maps", "aux_logits", "losses", "aux"],
    meta_fields=["prefix", "grid"],
)
@dataclasses.dataclass(frozen=True)
class Outputs:
    """Everything of a forward pass beside the logits.

    Attributes:
      features: `[b, n, d]`, the tokens after the last norm, class tokens and registers first.
      pooled: float32 `[b, d]`, what the head classifies: the class token, the mean of the patches,
        or what an attention pool makes of all tokens; None where the network has no such thing.
      token_maps: for each block int32 `[b, N]`, where each of the N input tokens (class tokens
        included) was in the block's feed-forward: the index of the token that held it, or
        `-(i + 1)` when it was out of the set since block `i`. The last entry is the map of the
        finished set.
      aux_logits: float32 `[b, k]` of each auxiliary head, by name; in training passes only.
      losses: the reducer's extra losses by name, unweighted; in training passes only.
      aux: what else the network or the reducer has to show, by name. In a pyramid `stage0`,
        `stage1`, ... are the patch tokens at the end of each stage, `[b, rows, columns, d]`; the
        last stage's are not there once tokens have left or merged in it.
      prefix: how many class tokens and registers come first.
      grid: (rows, columns) of the input's patches; None where there are none.
    """

    features: Float[Array, "b n d"]
    pooled: Float[Array, "b d"] | None = None
    token_maps: tuple[Int[Array, "b N"], ...] = ()
    aux_logits: dict[str, Float[Array, "b k"]] = dataclasses.field(default_factory=dict)
    losses: dict[str, Float[Array, ""]] = dataclasses.field(default_factory=dict)
    aux: dict[str, Array] = dataclasses.field(default_factory=dict)
    prefix: int = 0
    grid: tuple[int, int] | None = None

    def dense(
        self, tokens: Float[Array, "b n d"] | None = None, *, dropped: str = "nearest"
    ) -> Float[Array, "b r c d"]:
        """A value for every patch of the input, whatever was merged or dropped on the way.

        A patch that merged has the value of the token that holds it. Without a reduction this is
        the patch tokens as they are, reshaped. In a pyramid, whose tokens are fewer in the end,
        all patches of a cell have its token's value.

        Args:
          tokens: of the finished set, class tokens and registers first: `features` by default, or
            anything that was made of each of them, such as a probe's logits.
          dropped: what a patch has that was dropped: "nearest", the value of the patch nearest to
            it in the grid that is still there; or "zero". `token_maps[-1]` is negative there.

        Raises:
          UserError: there is no grid, `tokens` are not of the finished set, or `dropped` is
            another word.
        """
        tokens = self.features if tokens is None else tokens
        if self.grid is None or not self.token_maps:
            raise UserError("dense: this network has no tokens on a grid")
        if tokens.shape[:2] != self.features.shape[:2]:
            raise UserError(
                f"dense: tokens are {tuple(tokens.shape)}, the finished set has "
                f"{self.features.shape[1]} tokens of {self.features.shape[0]} images"
            )
        source = self.token_maps[-1]
        walked = source.shape[1] - self.grid[0] * self.grid[1]
        # Class tokens that came in behind the blocks, as VOLO's, stand before what the map counts.
        source = source[:, walked:] + self.prefix - walked
        source = jnp.where(self.token_maps[-1][:, walked:] < 0, -1, source)
        return on_grid(tokens, source, grid=self.grid, dropped=dropped)


def patch_map(tokens: TokenSet) -> Float[Array, "b h w d"]:
    """The patch tokens in their places; there must be one for each."""
    patches = tokens.x[:, tokens.prefix :]
    return patches.reshape(patches.shape[0], *tokens.grid, patches.shape[-1])


def stage_maps(ends: Sequence[TokenSet]) -> dict[str, Float[Array, "b h w d"]]:
    """The patch tokens at the ends of a pyramid's stages, by name, where their grid is whole."""
    whole = [tokens.patches == tokens.grid[0] * tokens.grid[1] for tokens in ends]
    return {f"stage{i}": patch_map(ends[i]) for i, all_there in enumerate(whole) if all_there}
