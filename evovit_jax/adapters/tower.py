"""The call of an accelerated tower: its own, in which all of its blocks are one walk.

Tested in tests/adapters/acceleration_test.py.
"""

import contextvars
import functools
import math
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.extend
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from evovit_jax.adapters.adapter import Adapter
from evovit_jax.adapters.attention import call_flax
from evovit_jax.adapters.halves import Halves, name_of
from evovit_jax.adapters.parts import with_inner_part, with_parts
from evovit_jax.errors import UserError
from evovit_jax.reduction import Reducer
from evovit_jax.reduction.attention_request import key_mask
from evovit_jax.reduction.base import AttentionRequest
from evovit_jax.reduction.dense import on_grid
from evovit_jax.reduction.merging import log_sizes
from evovit_jax.reduction.none import Dense
from evovit_jax.reduction.tokens import TokenSet, start_tokens
from evovit_jax.reduction.walk import walk

TokenMaps = tuple[Int[Array, "b N"], ...]
# While somebody wants the token maps of a pass: what they are added to.
_wanted: contextvars.ContextVar["_Collection | None"] = contextvars.ContextVar(
    "token_maps", default=None
)


@runtime_checkable
class Forward(Protocol):
    """The call of a tower that does not call its blocks one by one."""

    def __call__(self, tower: nnx.Module, walking: "Walking", *args: Any, **kwargs: Any) -> Any:
        """What the tower returns, with `walking` in the place of its blocks.

        Args:
          tower: the accelerated one.
          walking: takes tokens `[b, n, d]` and returns them after all blocks.
          *args: what the tower is called with.
          **kwargs: likewise.
        """


class Accelerated:
    """What is added to the class of a tower.

    Attributes:
      original: the class of the tower.
      adapter: where its blocks are.
      reducer: looks at, and replaces, the tokens on their way.
    """

    __slots__ = ()
    original: type
    adapter: Adapter
    reducer: Reducer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the tower returns; without a reduction its own call."""
        if isinstance(self.reducer, Dense) and _wanted.get() is None:
            return self.original.__call__(self, *args, **kwargs)
        walking = Walking(self, args, kwargs)
        if self.adapter.forward is not None:
            return self.adapter.forward(self, walking, *args, **kwargs)
        tower = with_inner_part(self, self.adapter.path, walking, self.original)
        if self.adapter.pool is not None:
            tower = with_parts(tower, {self.adapter.pool: walking.pool})
        return tower(*args, **kwargs)


@functools.cache
def accelerated_class(original: type) -> type:
    """A subclass whose call walks over the blocks, and which instances can be turned into.

    For the latter the original is the first base.
    """
    body = {
        "original": original,
        "__call__": Accelerated.__call__,
        "__module__": __name__,
        "__doc__": original.__doc__,
    }
    name = f"Accelerated{original.__name__}"
    return types.new_class(name, (original, Accelerated), exec_body=lambda ns: ns.update(body))


class Walking:
    """All blocks of a tower as one, for one call; also the list of which it is the only member."""

    def __init__(self, tower: Accelerated, args: Sequence[Any], kwargs: dict[str, Any]):
        self.tower = tower
        self.grid = _grid_of_images(tower, [*args, *kwargs.values()])
        self.finished = None

    def __iter__(self) -> Iterator["Walking"]:
        yield self

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> "Walking":
        if i not in (0, -1):
            raise UserError(
                f"{self.tower.original.__qualname__} takes its blocks by their number; only a "
                "model that goes through all of them in turn can be accelerated"
            )
        return self

    def walk(self, x: Float[Array, "b n d"], *args: Any, **kwargs: Any) -> TokenSet:
        """The finished tokens; the further arguments are those of each block."""
        tower, adapter = self.tower, self.tower.adapter
        blocks = [
            Halves(block, adapter.attention, adapter.attend, args, kwargs)
            for block in adapter.list_blocks(tower)
        ]
        grid = self.grid or _grid_of_tokens(x.shape[1], adapter)
        if adapter.prefix + math.prod(grid) != x.shape[1]:
            raise UserError(
                f"{name_of(tower)} has {x.shape[1]} tokens, not {adapter.prefix} and a grid of "
                f"{grid[0]} x {grid[1]}; give accelerate the right prefix and grid"
            )
        tokens = start_tokens(x, prefix=adapter.prefix, grid=grid, places=adapter.rotary)
        walked = walk([blocks], tokens, tower.reducer)
        wanted = _wanted.get()
        if wanted is not None:
            wanted.add(walked.token_maps)
        self.finished = tower.reducer.as_pooled(walked.tokens)
        return self.finished

    def __call__(self, x: Float[Array, "b n d"], *args: Any, **kwargs: Any) -> Array:
        """The tokens after all blocks.

        Each patch has the token that holds it, a dropped one that of the nearest that is not, so
        that whatever comes after sees the grid that it knows. For a pooling head they stay few.
        """
        tokens = self.walk(x, *args, **kwargs)
        if self.tower.adapter.pool is not None:
            return tokens.x
        first, prefix = tokens.x[:, : tokens.prefix], tokens.prefix
        patches = on_grid(tokens.x, tokens.source[:, prefix:], grid=tokens.grid)
        return jnp.concatenate([first, patches.reshape(x[:, prefix:].shape)], axis=1)

    def pool(self, x: Float[Array, "b n d"], *args: Any, **kwargs: Any) -> Array:
        """What the tower's pooling head makes of the normalised tokens `x` after the walk."""
        head = getattr(self.tower, self.tower.adapter.pool)
        bias = log_sizes(self.finished)
        if self.finished.mask is not None:
            mask = key_mask(self.finished.mask)
            bias = mask if bias is None else bias + mask
        (name,) = attentions_of(head)
        own = getattr(head, name)

        def attention(*args: Any, **kwargs: Any) -> Array:
            return call_flax(own, AttentionRequest(bias=bias), None, *args, **kwargs)[0]

        return with_parts(head, {name: attention})(x, *args, **kwargs)


def attentions_of(block: nnx.Module) -> list[str]:
    """The attributes of a module that are Flax's multi-head attention."""
    return [k for k, part in vars(block).items() if isinstance(part, nnx.MultiHeadAttention)]


def _grid_of_images(tower: Accelerated, given: Sequence[Any]) -> tuple[int, int] | None:
    """(rows, columns) of patches, by the images that it is called with and its convolution."""
    images = [value for value in given if getattr(value, "ndim", 0) == 4]
    for _, part in nnx.iter_modules(tower) if images else ():
        if isinstance(part, nnx.Conv) and part.strides == part.kernel_size:
            shape = images[0].shape
            height, width = shape[1:3] if shape[3] == part.in_features else shape[2:]
            return height // part.kernel_size[0], width // part.kernel_size[1]
    return None


def _grid_of_tokens(count: int, adapter: Adapter) -> tuple[int, int]:
    """(rows, columns) of patches of that many tokens: its own grid, or a square."""
    patches = count - adapter.prefix
    side = math.isqrt(max(patches, 0))
    return adapter.grid if math.prod(adapter.grid) == patches else (side, side)


def with_token_maps(function: Callable[..., Any]) -> Callable[..., tuple[Any, TokenMaps]]:
    """A function that returns what `function` does, and where every token went in it.

    `with_token_maps(model)(images)` is `(model(images), token_maps)`; a method of the model, such
    as `encode_image`, is wrapped likewise. The maps are those of `Outputs.token_maps`. To compile
    it, wrap first: `jax.jit(with_token_maps(model))`.

    Raises:
      UserError: when called, unless one accelerated tower runs once, in no program of its own.
    """

    def watched(*args: Any, **kwargs: Any) -> tuple[Any, TokenMaps]:
        collection = _Collection()
        before = _wanted.set(collection)
        try:
            output = function(*args, **kwargs)
        finally:
            _wanted.reset(before)
        if len(collection.found) != 1:
            raise UserError(
                f"{len(collection.found)} accelerated towers ran in a call whose token maps are "
                "wanted; wrap the call of one, before it is compiled"
            )
        return output, collection.found[0]

    return watched


class _Collection:
    """The token maps of the passes in a call, which have to be of the program that asks for them.

    Attributes:
      found: those of each pass.
    """

    def __init__(self):
        self.found: list[TokenMaps] = []
        self._program = jax.extend.core.get_opaque_trace_state()

    def add(self, token_maps: TokenMaps) -> None:
        """Adds those of a pass."""
        if jax.extend.core.get_opaque_trace_state() != self._program:
            raise UserError(
                "token maps are wanted of a function that is compiled already; wrap it before: "
                "jax.jit(with_token_maps(model))"
            )
        self.found.append(token_maps)
