"""Any model whose blocks lie in one list, each around an `nnx.MultiHeadAttention`.

Tested in tests/adapters/acceleration_test.py.
"""

import math
from collections.abc import Sequence

from flax import nnx

from evovit_jax.adapters.adapter import Adapter
from evovit_jax.adapters.halves import name_of
from evovit_jax.adapters.tower import attentions_of
from evovit_jax.errors import UserError

Path = tuple[str | int, ...]


def find_blocks(model: nnx.Module) -> tuple[str, ...]:
    """Where the list of a model's blocks is.

    Raises:
      UserError: if it has none, or several.
    """
    lists = [path for path, part in nnx.iter_modules(model) if _are_blocks(part)]
    if len(lists) > 1:
        named = ", ".join(".".join(map(str, path)) for path in lists)
        raise UserError(
            f"{name_of(model)} has several lists of blocks ({named}); accelerate the image tower "
            "alone, and put it back"
        )
    if not lists or not all(isinstance(name, str) for name in lists[0]):
        raise UserError(
            f"no adapter for {name_of(model)}, and it has no list of blocks with an "
            "nnx.MultiHeadAttention each; describe it with evovit_jax.adapters.Adapter "
            "(docs/accelerate.md)"
        )
    return tuple(map(str, lists[0]))


def _are_blocks(part: nnx.Module) -> bool:
    if not isinstance(part, nnx.List) or not len(part):
        return False
    return all(isinstance(block, nnx.Module) and len(attentions_of(block)) == 1 for block in part)


def describe(
    model: nnx.Module, path: Sequence[str], prefix: int | None, grid: tuple[int, int] | None
) -> tuple[Sequence[str], Adapter]:
    """The path of the tower in the model, and its adapter.

    The tower is the innermost module around the blocks that has learned positions. They are of a
    square grid, after the class tokens, unless `prefix` and `grid` say otherwise.

    Raises:
      UserError: if the number of class tokens and the grid are neither given nor to be seen.
    """
    modules = [model]
    for name in path:
        modules.append(getattr(modules[-1], name))
    (attention,) = attentions_of(modules[-1][0])
    width = getattr(modules[-1][0], attention).in_features
    counts = [_positions(module, width) for module in modules[:-1]]
    depth = max((i for i, count in enumerate(counts) if count), default=0)
    if counts[depth] and (prefix is None or grid is None):
        count = counts[depth]
        side = math.isqrt(math.prod(grid) if grid else count - (prefix or 0))
        grid = grid or (side, side)
        prefix = count - math.prod(grid) if prefix is None else prefix
    if prefix is None or grid is None:
        raise UserError(
            f"cannot tell the class tokens and the grid of {name_of(model)}, which has no learned "
            "positions; give accelerate prefix=CLASS_TOKENS and grid=(ROWS, COLUMNS)"
        )
    blocks = ".".join(path[depth:])
    return path[:depth], Adapter(blocks, attention, prefix=prefix, grid=tuple(grid))


def _positions(module: nnx.Module, width: int) -> int:
    """How many learned positions of `width` channels there are in a module; 0 for none.

    They are a parameter `[n, width]` or `[1, n, width]` with "pos" in its name, or the table of an
    `nnx.Embed` with that name.
    """
    found = [0]
    for path, variable in nnx.iter_graph(module):
        if not isinstance(variable, nnx.Param) or variable.shape[-1:] != (width,):
            continue
        names = [str(name) for name in path[-2:]]
        named = "pos" in names[-1] or (names[-1] == "embedding" and "pos" in names[0])
        if named and variable.shape[:-2] in ((), (1,)) and variable.ndim > 1:
            found.append(variable.shape[-2])
    return max(found)
