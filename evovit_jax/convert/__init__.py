"""PyTorch checkpoints to models here and back; one family of names a file."""

from flax import nnx

from evovit_jax.convert.families import find_family
from evovit_jax.convert.links import Tensors
from evovit_jax.convert.transfer import read_into, write_from


def from_torch(
    model: nnx.Module,
    tensors: Tensors,
    family: str | None = None,
    *,
    allow_missing: bool | str = False,
) -> list[str]:
    """Sets the variables of `model` from a PyTorch state dict.

    Args:
      model: changed in place, and only if all of it fits. Settings of its reducer become those
        that such weights were trained with.
      tensors: NumPy arrays by PyTorch's names.
      family: whose names they are; None finds out.
      allow_missing: True accepts variables without a tensor (they keep their values) and tensors
        without a variable; a pattern does so for those whose whole path or name it matches.

    Returns:
      What a user should know: sizes that were adapted, parts left as they are, settings changed.

    Raises:
      UserError: for gaps, leftovers, shapes that do not fit, or inconsistent copies of a tensor.
    """
    scheme = find_family(model, family, tensors).scheme(model)
    return read_into(model, tensors, scheme, allow_missing=allow_missing)


def to_torch(model: nnx.Module, family: str | None = None) -> Tensors:
    """The state dict of `model` under the names of `family` (None: timm's, else the official).

    Raises:
      UserError: for a family that this model does not have.
    """
    return write_from(model, find_family(model, family).scheme(model))


__all__ = ["from_torch", "to_torch"]
