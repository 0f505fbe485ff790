"""One line that puts a reduction into a model of another library.

Tested in tests/adapters/acceleration_test.py.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from flax import nnx

from evovit_jax.adapters import bonsai, flax_blocks, jimm
from evovit_jax.adapters.adapter import Adapter
from evovit_jax.adapters.halves import Halves, check_halves
from evovit_jax.adapters.tower import Accelerated, accelerated_class
from evovit_jax.errors import UserError
from evovit_jax.models.token_model import TokenModel
from evovit_jax.reduction import Backbone, Reducer, create_reducer, describe

Model = TypeVar("Model")
# Each says of a module how it is accelerated, None of one that is no tower it knows.
_adapters: list[Callable[[nnx.Module], Adapter | None]] = [jimm.adapter, bonsai.adapter]


def register_adapter(find: Callable[[nnx.Module], Adapter | None]) -> None:
    """Makes further models known to `accelerate`.

    `find` is asked of every module of a model: it returns the adapter of an image tower that it
    recognises, None otherwise. The one that was registered last is asked first.
    """
    _adapters.insert(0, find)


def accelerate(
    model: Model,
    reduction: str | Mapping[str, Any] | None,
    *,
    prefix: int | None = None,
    grid: tuple[int, int] | None = None,
    adapter: Adapter | None = None,
    rngs: nnx.Rngs | None = None,
) -> Model:
    """The same kind of model with a reduction in its image tower: `accelerate(model, "tome,r=16")`.

    It is called as the model is, is an instance of its class, and its variables have the same
    paths; they start as the same arrays. The model itself stays as it is. Reductions run as in
    inference. `with_token_maps` shows where the tokens went.

    Args:
      model: of jimm, of bonsai, or any other whose blocks lie in one list, each around an
        `nnx.MultiHeadAttention`; or one that this function returned.
      reduction: as `create_model` takes it.
      prefix: how many class tokens and registers the model puts before its patches, where it is
        not known to an adapter and has no learned positions that say so.
      grid: (rows, columns) of patches that it was made for; likewise.
      adapter: of the model itself, where it is none of these.
      rngs: for a reduction whose parameters are learned, which then are new.

    Raises:
      UserError: if the model is not understood, or the reduction does not fit it.
    """
    if not isinstance(model, nnx.Module):
        raise UserError(
            f"accelerate takes a Flax NNX model, not a {type(model).__name__}; parameters in a "
            "file are read by load_weights into a model of create_model"
        )
    if isinstance(model, TokenModel):
        raise UserError(
            f"a {type(model).__name__} has its reduction from the start: "
            "create_model(NAME, reduction=...)"
        )
    model = nnx.clone(model)
    towers = {(): adapter} if adapter else _find(model)
    if not towers:
        path, adapter = flax_blocks.describe(model, flax_blocks.find_blocks(model), prefix, grid)
        towers = {tuple(path): adapter}
        _check_blocks(_module_at(model, path), adapter)
    for path, adapter in towers.items():
        _accelerate_tower(_module_at(model, path), adapter, reduction, rngs)
    return model


def _find(model: nnx.Module) -> dict[tuple, Adapter]:
    """The towers in a model that an adapter recognises, by path."""
    towers = {}
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Accelerated):
            towers[path] = module.adapter
            continue
        for find in _adapters:
            adapter = find(module)
            if adapter is not None:
                towers[path] = adapter
                break
    return towers


def _module_at(model: nnx.Module, path: Sequence[str | int]) -> nnx.Module:
    found: Any = model
    for name in path:
        found = found[name] if isinstance(name, int) else getattr(found, name)
    return found


def _check_blocks(tower: nnx.Module, adapter: Adapter) -> None:
    """Refuses a tower that nobody described, if its blocks are not what they are taken for."""
    block = adapter.list_blocks(tower)[0]
    width, _ = adapter.sizes(block)
    check_halves(Halves(block, adapter.attention, adapter.attend), width)


def _accelerate_tower(tower: Any, adapter: Adapter, reduction: Any, rngs: nnx.Rngs | None) -> None:
    """Gives a tower its reducer, and its class the call that walks."""
    blocks = adapter.list_blocks(tower)
    width, heads = adapter.sizes(blocks[0])
    if not isinstance(tower, Accelerated):
        tower.__class__ = accelerated_class(type(tower))
    tower.adapter = adapter
    tower.reducer = _reducer(reduction, adapter, len(blocks), width, heads, rngs)


def _reducer(
    reduction: Any, adapter: Adapter, depth: int, width: int, heads: int, rngs: nnx.Rngs | None
) -> Reducer:
    backbone = Backbone(
        depth=depth,
        dim=(width,),
        heads=(heads,),
        grid=adapter.grid,
        prefix=adapter.prefix,
        stage_depths=(depth,),
        rotary=adapter.rotary,
        pools_patches=adapter.pool is not None,
        scores=(*(("class",) if adapter.prefix else ()), "received", "key_norm", "shift"),
    )
    reducer = create_reducer(reduction, backbone, rngs=rngs or nnx.Rngs(0))
    if rngs is None and nnx.to_flat_state(nnx.state(reducer, nnx.Param)):
        raise UserError(
            f"reduction {describe(reduction)!r} has parameters that are learned, which this model "
            "has not; give accelerate rngs=nnx.Rngs(0) to make new ones, and train them"
        )
    return reducer
