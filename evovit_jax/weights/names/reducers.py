"""The names of reducers' parameters in the published checkpoints (DynamicViT, TokenReduction).

tests/weights/state_dict_test.py sends it through a round trip.
"""

from flax import nnx

Renames = tuple[tuple[str, str], ...]


def renames(model: nnx.Module) -> Renames:
    """How the parameters of a model's reducer are called in PyTorch."""
    names = getattr(getattr(model, "reducer", None), "torch_names", ())
    own = tuple((rf"reducer\.{pattern}", replacement) for pattern, replacement in names)
    return (*own, (r"reducer\.(.*)", r"\1"))


def has_fast_paths(model: nnx.Module) -> bool:
    """Whether a model has what only DynamicViT's code on maps knows."""
    return hasattr(getattr(model, "reducer", None), "fast_path")


def fast_paths(model: nnx.Module, norm: str, linear: str) -> Renames:
    """The names of the fast paths of a network over maps, before those of its blocks.

    Args:
      model: with any reduction.
      norm: what a block in PyTorch calls the LayerNorm of its fast path.
      linear: likewise, the linear map.
    """
    if not has_fast_paths(model):
        return ()
    reducer = model.reducer
    stage, found = reducer.fields.stage, []
    for i, number in enumerate(reducer.split_blocks):
        own = rf"reducer\.fast_path\.{i}"
        block = f"stages.{stage}.{number - reducer.backbone.stage_starts[stage]}"
        found += [
            (rf"{own}\.norm\.(.*)", rf"{block}.{norm}.\1"),
            (rf"{own}\.linear\.(.*)", rf"{block}.{linear}.\1"),
            (rf"{own}\.gamma", f"{block}.fast_path_gamma"),
        ]
    return tuple(found)
