"""What an adapter says of a model of another library.

Tested in tests/adapters/acceleration_test.py.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from evovit_jax.adapters.attention import Attend, flax_attention
from evovit_jax.adapters.parts import inner_part


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Where an image tower keeps what a walk over its blocks needs.

    A tower is the module that embeds images, takes the tokens through its blocks, and pools them:
    a whole model, or a part of one. A block is `x + attention(norm(x))`, then `x + mlp(norm(x))`,
    with whatever else is on the two branches; it is called as it is.

    Attributes:
      blocks: the attribute of the tower that is the list of its blocks; a dotted path where it
        lies deeper.
      attention: the attribute of a block that is its attention.
      prefix: how many class tokens and registers come before the patches.
      grid: (rows, columns) of patches that the tower was made for.
      width: of the tokens; None to read it off an `nnx.MultiHeadAttention`.
      heads: of the attention; likewise.
      attend: calls the attention under a reducer's request.
      pool: the attribute of the tower that pools all tokens through an `nnx.MultiHeadAttention`,
        where merged tokens then count by their size; None where there is none.
      rotary: whether the attention turns queries and keys by the places of tokens, which then
        `attend` finds in `TokenSet.place`.
      stacked: whether `blocks` is one block whose variables have an axis of all blocks in front.
      forward: the call of a tower that does not call its blocks one by one, as `tower.Forward`.
    """

    blocks: str
    attention: str
    prefix: int
    grid: tuple[int, int]
    width: int | None = None
    heads: int | None = None
    attend: Attend = flax_attention
    pool: str | None = None
    rotary: bool = False
    stacked: bool = False
    forward: Callable[..., Any] | None = None

    @property
    def path(self) -> tuple[str, ...]:
        """The attributes that lead to the blocks."""
        return tuple(self.blocks.split("."))

    def list_blocks(self, tower: nnx.Module) -> list[nnx.Module]:
        """All blocks of a tower, the first one first."""
        blocks = inner_part(tower, self.path)
        if not self.stacked:
            return list(blocks)
        graphdef, state = nnx.split(blocks)
        depth = len(jax.tree.leaves(state)[0])
        return [nnx.merge(graphdef, jax.tree.map(lambda x, i=i: x[i], state)) for i in range(depth)]

    def sizes(self, block: nnx.Module) -> tuple[int, int]:
        """The width of the tokens and the number of heads."""
        attention = getattr(block, self.attention)
        width = attention.in_features if self.width is None else self.width
        return width, attention.num_heads if self.heads is None else self.heads
