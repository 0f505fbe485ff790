"""The kinds of checkpoints that are understood, and how one is recognised.

The models of `evovit_jax/models/NAME.py` are stored as `FAMILIES` of `weights/names/NAME.py` says;
models from outside the package as `register` was told.
"""

import dataclasses
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable

from flax import nnx

from evovit_jax import models
from evovit_jax.errors import UserError, suggestion
from evovit_jax.weights.layouts import Scheme


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of checkpoint of a model.

    Of a model's families the first whose mark is among a checkpoint's names reads it, and the first
    that is natural writes it; where there is none, the last one does.

    Attributes:
      name: as `--family` takes it.
      scheme: how it stores a model.
      mark: pattern of a tensor name that only this family of the model has; "" for the last one.
      natural: whether a model is written so when nobody says how.
    """

    name: str
    scheme: Callable[[nnx.Module], Scheme]
    mark: str = ""
    natural: Callable[[nnx.Module], bool] = lambda model: False


_registered: dict[type[nnx.Module], tuple[Family, ...]] = {}


def register(model: type[nnx.Module], *families: Family) -> None:
    """Makes known how checkpoints store a model that lives outside this package.

    Raises:
      UserError: it is known already.
    """
    if not families or families_of(model) not in ((), families):
        raise UserError(f"the families of {model.__name__} are known already, or none is given")
    _registered[model] = families


def families_of(model: type[nnx.Module]) -> tuple[Family, ...]:
    """The families that can store models of a class; none for one that nobody described."""
    if model in _registered:
        return _registered[model]
    room, _, name = model.__module__.rpartition(".")
    module = f"evovit_jax.weights.names.{name}"
    if room != models.__name__ or importlib.util.find_spec(module) is None:
        return ()
    return importlib.import_module(module).FAMILIES


def find_family(model: nnx.Module, name: str | None, names: Iterable[str] = ()) -> Family:
    """The family called `name`; without a name the one that the tensors' `names` show.

    Raises:
      UserError: for a family that this model does not have, or a model that has none.
    """
    kind = type(model).__name__
    families = families_of(type(model))
    if not families:
        raise UserError(f"there is no PyTorch layout for a {kind}")
    if name is None:
        names = list(names)
        fits = (f.mark and any(re.fullmatch(f.mark, n) for n in names) for f in families)
        if not names:
            fits = (f.natural(model) for f in families)
        return next((f for f, fit in zip(families, fits, strict=True) if fit), families[-1])
    for family in families:
        if family.name == name:
            return family
    raise UserError(
        f"no family {name!r} for a {kind}; " + suggestion(name, [f.name for f in families])
    )
