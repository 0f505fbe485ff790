"""How many tokens every block of a network works on, without computing anything."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.hardware.platforms import compiling_for
from evovit_jax.reduction.base import AttentionRequest, AttentionView, Backbone, Reducer
from evovit_jax.reduction.tokens import TokenSet, start_tokens
from evovit_jax.reduction.walk import BlockTokens, drops_odd_places, subsampled_grid, walk


def count(reducer: Reducer, grid: tuple[int, int]) -> tuple[BlockTokens, ...]:
    """The tokens of every block in inference, read off the shapes that the hooks return.

    Args:
      reducer: with or without values of its parameters.
      grid: (rows, columns) of the input's patch tokens.
    """
    backbone, counts = reducer.backbone, []
    graphdef, state = nnx.split(reducer)

    def take(state: Any) -> None:
        n = backbone.prefix + grid[0] * grid[1]
        tokens = start_tokens(
            jnp.zeros((1, n, backbone.dim[0])),
            prefix=backbone.prefix,
            grid=grid,
            places=backbone.rotary,
        )
        blanks = [_Blank(backbone, stage) for stage in range(len(backbone.stage_depths))]
        stages = [
            [blank] * depth for blank, depth in zip(blanks, backbone.stage_depths, strict=True)
        ]
        between = [_BlankSubsampling(backbone, blank.stage) for blank in blanks[:-1]]
        counts.extend(walk(stages, tokens, nnx.merge(graphdef, state), between).counts)

    no_mesh = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))
    with no_mesh, compiling_for("cpu"):  # the counts are those of any platform
        jax.eval_shape(take, state)
    return tuple(counts)


@dataclasses.dataclass(frozen=True)
class _Blank:
    """A block that leaves the tokens as they are."""

    backbone: Backbone
    stage: int

    def attend(
        self, block: int, tokens: TokenSet, request: AttentionRequest
    ) -> tuple[TokenSet, AttentionView]:
        del block
        return tokens, blank_view(request, tokens, self.backbone, self.stage)

    def feed_forward(self, block: int, tokens: TokenSet) -> TokenSet:
        del block
        return tokens


@dataclasses.dataclass(frozen=True)
class _BlankSubsampling:
    """Zeros for the tokens of the next stage."""

    backbone: Backbone
    stage: int

    def attend(
        self, tokens: TokenSet, request: AttentionRequest
    ) -> tuple[Float[Array, "1 m e"], AttentionView]:
        backbone = self.backbone
        drops_odd = drops_odd_places(backbone)
        rows, columns = subsampled_grid(tokens.grid, backbone.stride, drops_odd=drops_odd)
        n = self.backbone.prefix + rows * columns
        x = jnp.zeros((1, n, self.backbone.dim[self.stage + 1]))
        return x, blank_view(request, tokens, self.backbone, self.stage)

    def feed_forward(self, tokens: TokenSet) -> TokenSet:
        return tokens


def blank_view(
    request: AttentionRequest, tokens: TokenSet, backbone: Backbone, stage: int
) -> AttentionView:
    """An attention view of the shapes that `request` asks for, for one image."""
    n, heads, dim = tokens.x.shape[1], backbone.heads[stage], backbone.key_dims[stage]
    shapes = {
        "class_row": (1, heads, n),
        "raw_keys": (1, heads, n, dim),
        "weights": (1, heads, n, n),
        "keys": (1, heads, n, dim),
        "values": (1, heads, n, dim),
        "inputs": (1, n, backbone.dim[stage]),
    }
    return AttentionView(**{name: jnp.zeros(shapes[name]) for name in request.needs})
