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
