"""Every model by name: how it is built, how its images are prepared, what was published."""

import dataclasses
import fnmatch
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from evovit_jax.errors import UserError, suggestion
from evovit_jax.reduction import Reducer, resolve
from evovit_jax.reduction.typed_fields import checked, plain

# Modules of this package with a table `MODELS: dict[str, Entry]`; one backbone a file.
MODULES = (
    "vit_in21k",
    "deit",
    "deit3",
    "levit",
    "lvvit",
    "pvt_v2",
    "pit",
    "cvt",
    "convnext",
    "swin",
    "regnet",
    "convit",
    "crossvit",
    "volo",
    "dinov2",
    "dinov3",
    "siglip",
    "clip",
    "perception_encoder",
    "mae",
    "tokenlearner_vit",
    "lookupvit",
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Mean and standard deviation under which images are in [-1, 1].
INCEPTION = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """The evaluation transform of a model's own authors.

    Attributes:
      image_size: side of the crop, pixels.
      resize: side to which the shorter edge is resized before the centre crop, pixels.
      interpolation: "bicubic" or "bilinear".
      mean: of each channel, images in [0, 1].
      std: of each channel, images in [0, 1].
    """

    image_size: int = 224
    resize: int = 256
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def at(self, image_size: int) -> "EvalTransform":
        """The same crop fraction at another image size, rounded down as DeiT's authors do."""
        resize = self.resize * image_size // self.image_size
        return dataclasses.replace(self, image_size=image_size, resize=resize)


def at_crop(
    image_size: int,
    crop: float,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> EvalTransform:
    """The bicubic transform of timm's crop fraction, which it rounds down."""
    return EvalTransform(image_size, int(image_size / crop), mean=mean, std=std)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of a model table.

    Attributes:
      model: the class; it has a dataclass `Config`, and in `smoke` settings of its smallest
        sensible network; made by `model(config, reduction, rngs=)`, where `reduction` is as
        `--reduction` takes it.
      settings: what differs from the defaults of `Config`.
      reduction: the model's own reduction, as `--reduction` takes it.
      transform: how images are prepared for it in evaluation.
      top1: published ImageNet top-1, percent; None where nothing was published.
      weights: where the published weights are; "" where there are none.
    """

    model: Callable[..., nnx.Module]
    settings: Mapping[str, Any]
    reduction: str = "none"
    transform: EvalTransform = EvalTransform()
    top1: float | None = None
    weights: str = ""

    def reduction_fields(
        self, spec: str | Mapping[str, Any] | None
    ) -> tuple[str, type[Reducer], dict[str, Any]]:
        """A reduction's name, its class in this model, and all fields, those not given by default.

        Args:
          spec: as `--reduction` takes it; "" or None for the model's own.

        Raises:
          UserError: for an unknown method or field, or a value of another type.
        """
        in_pyramid = isinstance(getattr(self.model.Config, "depth", None), tuple)
        name, reducer, given = resolve(spec or self.reduction, in_pyramid=in_pyramid)
        defaults = {field.name: field.default for field in dataclasses.fields(reducer.Fields)}
        return name, reducer, defaults | given


_registered: dict[str, Entry] = {}


def register(name: str, entry: Entry) -> None:
    """Makes a model that lives outside this package known by `name`.

    Raises:
      UserError: if the name is taken by another model.
    """
    if model_table().get(name, entry) != entry:
        raise UserError(f"model {name!r} exists already; choose another name")
    _registered[name] = entry


def model_table() -> dict[str, Entry]:
    """All models by name."""
    table = dict(_registered)
    for module in MODULES:
        table |= importlib.import_module(f"evovit_jax.models.{module}").MODELS
    return table


def list_models(pattern: str = "*") -> list[str]:
    """The names that match a shell pattern such as `"evo_*"`, sorted."""
    return sorted(fnmatch.filter(model_table(), pattern))


def model_entry(name: str) -> Entry:
    """The row of a model.

    Args:
      name: as `list_models()` has it; or without the tag of its weights, for the first of the rows
        that differ in it, as in timm; or with the tag where the list has none.

    Raises:
      UserError: for an unknown name.
    """
    table = model_table()
    if name not in table:
        for known, entry in table.items():
            if known.startswith(f"{name}.") or entry.weights == f"hf://timm/{name}":
                return entry
        close = close_names(name, list(table))
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UserError(f"unknown model {name!r}; {hint}python -m evovit_jax.models lists them all")
    return table[name]


def close_names(name: str, known: Sequence[str]) -> list[str]:
    """Up to three of `known` that may be meant by `name`, the closest first.

    People shorten names: what begins with `name` is first, and beginnings of the same length are
    compared as well as whole names ("deit_tinny" is close to "deit_tiny_patch16_224").
    """
    import difflib

    if name and (longer := [other for other in known if other.startswith(name)]):
        return sorted(longer, key=len)[:3]  # the plain model before its variants

    def likeness(other: str) -> float:
        parts = (other, other[: len(name)])
        return max(difflib.SequenceMatcher(None, name, part).ratio() for part in parts)

    scores = {other: likeness(other) for other in known if name}
    close = [other for other, score in scores.items() if score >= 0.75]
    return sorted(close, key=lambda other: (-scores[other], len(other)))[:3]


class InitKeys(nnx.Rngs):
    """The stream `params` of `nnx.Rngs(params=seed)`: the same keys, counted in Python.

    A network is mostly made inside a traced function (for its shapes, or sharded from the start),
    where every update of a counter that is an array costs more than the layer that it is for:
    1.8 s instead of 0.5 s for a DeiT-S, 9 s instead of 1.7 s for a DeiT-III-H, on a CPU.
    """

    def __init__(self, seed: int):
        self.seed, self.taken = seed, 0

    def params(self) -> jax.Array:
        """The next key."""
        key = jax.random.fold_in(jax.random.key(self.seed), self.taken)
        self.taken += 1
        return key


def create_model(
    name: str,
    reduction: str | Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    rngs: nnx.Rngs | None = None,
    **overrides: Any,
) -> nnx.Module:
    """Makes a model with random weights.

    Args:
      name: as `list_models()` has it; timm's name where timm has one.
      reduction: as `--reduction` takes it, or a mapping with `name`; None for the model's own.
      seed: of the weights, unless `rngs` is given.
      rngs: streams of the weights.
      **overrides: any field of the model's `Config` (`num_classes`, `image_size`, `depth`,
        `dtype`, ...); None leaves a field as the model has it.

    Raises:
      UserError: for an unknown model, field or reduction, or a value that does not fit.
    """
    entry = model_entry(name)
    defaults = {field.name: field.default for field in dataclasses.fields(entry.model.Config)}
    given = {}
    for field, value in overrides.items():
        if field not in defaults:
            raise UserError(
                f"model {name} has no field {field!r}; {suggestion(field, list(defaults))}"
            )
        if value is not None:
            given[field] = plain(value)
            if isinstance(defaults[field], tuple) and not isinstance(given[field], tuple):
                raise UserError(f"{field} of {name} is a list, a number for each stage")
    given = checked(f"model {name}", entry.model.Config, given)
    config = entry.model.Config(**{**entry.settings, **given})
    rngs = InitKeys(seed) if rngs is None else rngs
    return entry.model(config, entry.reduction if reduction is None else reduction, rngs=rngs)


def abstract_model(
    name: str, reduction: str | Mapping[str, Any] | None = None, **overrides: Any
) -> nnx.Module:
    """A model whose parameters have shapes and no values, otherwise as `create_model` makes it."""
    return nnx.eval_shape(lambda: create_model(name, reduction, **overrides))
