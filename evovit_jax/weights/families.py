"""The kinds of checkpoints that are understood, and how one is recognised."""

import dataclasses
import re
from collections.abc import Callable, Iterable

from flax import nnx

from evovit_jax.errors import UserError, suggestion
from evovit_jax.models.levit import LeViT
from evovit_jax.models.lvvit import LVViT
from evovit_jax.models.regnet import RegNet
from evovit_jax.models.vit import VisionTransformer
from evovit_jax.weights.layouts import Scheme
from evovit_jax.weights.names import evo_deit, google, levit, lvvit, regnet, vit


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of checkpoint.

    Attributes:
      name: as `--family` takes it.
      model: the class of the models that it stores.
      mark: pattern of a tensor name that only this family of that class has; "" marks the rest.
      scheme: how it stores a model.
      natural: whether a model is written so when nobody says how.
    """

    name: str
    model: type[nnx.Module]
    mark: str
    scheme: Callable[[nnx.Module], Scheme]
    natural: Callable[[nnx.Module], bool] = lambda model: False


def _is_official_evo(model: nnx.Module) -> bool:
    """Whether the official DeiT flavour computes the same: it has no representative token."""
    fields = model.reducer.fields
    return model.config.pool == "avg" and not getattr(fields, "representative_token", True)


# Of a model's families the first whose mark is found is read, the first that is natural written;
# the last of a model's in both cases if there is none.
FAMILIES = (
    Family(
        "evo_deit",
        VisionTransformer,
        r"qks\.0\.qk\.weight",
        evo_deit.scheme,
        natural=_is_official_evo,
    ),
    Family("deit3", VisionTransformer, r"blocks\.0\.gamma_1", vit.deit3_scheme),
    Family("google", VisionTransformer, r"Transformer/encoderblock_0/.*", google.scheme),
    Family("timm", VisionTransformer, "", vit.scheme),
    Family("lvvit", LVViT, "", lvvit.scheme),
    Family("pycls", RegNet, r"s1\.b1\.f\.a\.weight", regnet.pycls_scheme),
    Family("timm", RegNet, "", regnet.timm_scheme),
    Family("timm", LeViT, r"stem\.conv1\..*", levit.timm_scheme),
    Family("levit", LeViT, "", levit.official_scheme),
)


def families_of(model: nnx.Module) -> tuple[Family, ...]:
    """The families that can store `model`.

    Raises:
      UserError: if there is none.
    """
    found = tuple(family for family in FAMILIES if type(model) is family.model)
    if not found:
        raise UserError(f"there is no PyTorch layout for a {type(model).__name__}")
    return found


def find_family(model: nnx.Module, name: str | None, names: Iterable[str] = ()) -> Family:
    """The family called `name`; without a name the one that the tensors' `names` show.

    Raises:
      UserError: for a family that this model does not have.
    """
    known = families_of(model)
    if name is None:
        names = list(names)
        if not names:
            return next((f for f in known if f.natural(model)), known[-1])
        marked = (f for f in known if f.mark and any(re.fullmatch(f.mark, n) for n in names))
        return next(marked, known[-1])
    for family in known:
        if family.name == name:
            return family
    raise UserError(
        f"no family {name!r} for a {type(model).__name__}; "
        + suggestion(name, [family.name for family in known])
    )
