"""The walk over the blocks of a network: where a reducer is called, and with what.

Every backbone with tokens takes it, and so does `token_counts`, with blocks that compute nothing.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from evovit_jax.reduction.base import AttentionRequest, AttentionView, Backbone, Reducer
from evovit_jax.reduction.tokens import TokenSet, check_tokens, dropped_at, follow


@runtime_checkable
class Block(Protocol):
    """A block in two halves, between which a reducer may step in; `block` is its number."""

    def attend(
        self, block: int, tokens: TokenSet, request: AttentionRequest
    ) -> tuple[TokenSet, AttentionView]:
        """The tokens after attention with its residual, and what was asked to be seen of it."""

    def feed_forward(self, block: int, tokens: TokenSet) -> TokenSet:
        """The tokens after the feed-forward with its residual."""


@runtime_checkable
class Subsampling(Protocol):
    """What lies between two stages of a pyramid, in two halves like a block."""

    def attend(
        self, tokens: TokenSet, request: AttentionRequest
    ) -> tuple[Float[Array, "b m e"], AttentionView]:
        """The tokens of every `Backbone.stride`-th row and column, of the next stage's width."""

    def feed_forward(self, tokens: TokenSet) -> TokenSet:
        """Those tokens after whatever else comes before the next stage's first block."""


@dataclasses.dataclass(frozen=True)
class BlockTokens:
    """How many tokens of an image one block works on, class tokens included.

    Attributes:
      entering: when the block is reached, before the reducer's `before_block`.
      attention: in the attention.
      feed_forward: in the feed-forward.
      leaving: after the reducer's `after_block`.
    """

    entering: int
    attention: int
    feed_forward: int
    leaving: int


@dataclasses.dataclass(frozen=True)
class Walked:
    """What a walk ends with.

    Attributes:
      tokens: the finished set.
      token_maps: of each block the source map in its feed-forward, then the finished set's.
      counts: how many tokens each block worked on.
      ends: the set at the end of each stage, before it is subsampled; the last is `tokens`.
    """

    tokens: TokenSet
    token_maps: tuple[Int[Array, "b N"], ...]
    counts: tuple[BlockTokens, ...]
    ends: tuple[TokenSet, ...]


def walk(
    stages: Iterable[Iterable[Block]],
    tokens: TokenSet,
    reducer: Reducer,
    subsamplings: Sequence[Subsampling] = (),
    reads: int | None = None,
) -> Walked:
    """Takes the tokens of a network's input through all of its blocks.

    Args:
      stages: the blocks of each stage; one stage in a flat network.
      tokens: of the input.
      reducer: whose hooks are called; its `backbone` describes this network.
      subsamplings: what lies between two stages, one less than there are stages.
      reads: how many of the first tokens are wanted; the last block of a flat network computes
        these alone where the reducer does not ask for more, and the others stay as they were.
        None for all.

    Raises:
      AssertionError: a block or the reducer returned tokens of another shape or dtype than it must.
    """
    inputs, maps, counts, ends = tokens.x.shape[1], [], [], []
    last = reducer.backbone.depth - 1
    reads = None if reducer.reads_patches_of_last_block else reads
    for stage, blocks in enumerate(stages):
        check = functools.partial(check_tokens, dim=reducer.backbone.dim[stage], inputs=inputs)
        if stage == 0:
            tokens = check(reducer.start(tokens))
        else:
            ends.append(tokens)
            tokens = check(_subsample(subsamplings[stage - 1], stage - 1, tokens, reducer))
        for block in blocks:
            wanted = reads if len(counts) == last else None
            tokens, source, numbers = _through(block, len(counts), tokens, reducer, check, wanted)
            maps.append(source)
            counts.append(numbers)
    tokens = check(reducer.finish(tokens))
    return Walked(tokens, (*maps, tokens.source), tuple(counts), (*ends, tokens))


def _through(
    block: Block,
    i: int,
    tokens: TokenSet,
    reducer: Reducer,
    check: Callable[[TokenSet], TokenSet],
    wanted: int | None,
) -> tuple[TokenSet, Array, BlockTokens]:
    """The tokens after block number `i`, the source map within it, and the counts.

    Of `wanted` tokens the block computes the first alone, where what is asked of it allows that.
    """
    entering = tokens.x.shape[1]
    tokens = check(reducer.before_block(i, tokens))
    attending = tokens.x.shape[1]
    request = reducer.attention_request(i, tokens)
    if request.look_ahead is not None:
        _, view = block.attend(i, tokens, request)
        tokens, request = request.look_ahead(tokens, view)
        tokens, attending = check(tokens), tokens.x.shape[1]
    first = wanted if request.reads_no_other_rows() else None
    if first is not None:
        request = dataclasses.replace(request, queries=first)
    attended, attention = block.attend(i, tokens, request)
    tokens = _with_the_others(attended, tokens, first)
    tokens = check(reducer.after_attention(i, tokens, attention))
    source, feeding = tokens.source, tokens.x.shape[1]
    tokens = _with_the_others(block.feed_forward(i, tokens.first(first)), tokens, first)
    tokens = check(reducer.after_block(i, tokens))
    return tokens, source, BlockTokens(entering, attending, feeding, leaving=tokens.x.shape[1])


def _with_the_others(changed: TokenSet, tokens: TokenSet, first: int | None) -> TokenSet:
    """`changed`; where only the `first` tokens were computed, these and the others of `tokens`."""
    if first is None:
        return changed
    x = jnp.concatenate([changed.x[:, :first], tokens.x[:, first:]], axis=1)
    return tokens.replace(x=x)


def _subsample(
    subsampling: Subsampling, stage: int, tokens: TokenSet, reducer: Reducer
) -> TokenSet:
    """The tokens of the stage after stage number `stage`."""
    backbone = reducer.backbone
    stride, drops_odd = backbone.stride, drops_odd_places(backbone)
    x, attention = subsampling.attend(tokens, reducer.subsample_request(stage, tokens))
    tokens = reducer.subsample(tokens, attention, stride, stage=stage)
    lost_at = backbone.stage_starts[stage + 1] if drops_odd else None
    return subsampling.feed_forward(subsampled(tokens, x, stride, lost_at))


def drops_odd_places(backbone: Backbone) -> bool:
    """Whether places without neighbours for a whole cell are lost between two stages."""
    return backbone.map_blocks is not None and backbone.map_blocks.drops_odd


def subsampled_grid(
    grid: tuple[int, int], stride: int, *, drops_odd: bool = False
) -> tuple[int, int]:
    """(rows, columns) of the next stage: every `stride`-th, from the first on."""
    rows, columns = (side // stride if drops_odd else -(-side // stride) for side in grid)
    return rows, columns


def subsampled(
    tokens: TokenSet, x: Float[Array, "b m e"], stride: int, lost_at: int | None = None
) -> TokenSet:
    """The set with the tokens `x` of the next stage's grid.

    For the source map a token stands for the `stride` x `stride` cell that it is the corner of.
    Where rows or columns are left over that make no whole cell, they leave at block `lost_at`;
    None where they are cells as well.
    """
    rows, columns = tokens.grid
    grid = subsampled_grid(tokens.grid, stride, drops_odd=lost_at is not None)
    chex.assert_axis_dimension(x, 1, tokens.prefix + grid[0] * grid[1])
    y, x_ = jnp.divmod(jnp.arange(rows * columns, dtype=jnp.int32), columns)
    cells = (y // stride) * grid[1] + x_ // stride + tokens.prefix
    if lost_at is not None:
        whole = (y // stride < grid[0]) & (x_ // stride < grid[1])
        cells = jnp.where(whole, cells, jnp.int32(dropped_at(lost_at)))
    moves = jnp.concatenate([jnp.arange(tokens.prefix, dtype=jnp.int32), cells])
    moves = jnp.broadcast_to(moves, (x.shape[0], len(moves)))
    return tokens.replace(x=x, grid=grid, source=follow(tokens.source, moves))
