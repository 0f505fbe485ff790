"""Token reduction: one paper a file, one row each in the table below."""

import importlib
from collections.abc import Mapping
from typing import Any

from flax import nnx

from evovit_jax.errors import UserError, suggestion
from evovit_jax.reduction.base import Backbone, Reducer
from evovit_jax.reduction.typed_fields import checked

# name: module of this package, class.
METHODS: dict[str, tuple[str, str]] = {
    "none": ("none", "Dense"),
    "atc": ("atc", "ATC"),
    "ats": ("ats", "ATS"),
    "avit": ("avit", "AViT"),
    "cropr": ("cropr", "Cropr"),
    "diffrate": ("diffrate", "DiffRate"),
    "dpcknn": ("dpcknn", "DPCKNN"),
    "dtem": ("dtem", "DTEM"),
    "dtps": ("tps", "DTPS"),
    "dynamicvit": ("dynamic_vit", "DynamicViT"),
    "etps": ("tps", "ETPS"),
    "evit": ("evit", "EViT"),
    "evo": ("evo", "Evo"),
    "gtp": ("gtp", "GTP"),
    "heuristic": ("heuristic", "Heuristic"),
    "ia_red2": ("ia_red2", "IARED2"),
    "kmedoids": ("kmedoids", "KMedoids"),
    "ltmp": ("ltmp", "LTMP"),
    "mctf": ("mctf", "MCTF"),
    "patch_slimming": ("patch_slimming", "PatchSlimming"),
    "patchmerger": ("patch_merger", "PatchMerger"),
    "pitome": ("pitome", "PiToMe"),
    "ppt": ("ppt", "PPT"),
    "prune_and_merge": ("prune_and_merge", "PruneAndMerge"),
    "shift": ("shift", "Shift"),
    "sinkhorn": ("sinkhorn", "Sinkhorn"),
    "sit": ("sit", "SiT"),
    "svite": ("svite", "SViTE"),
    "tofu": ("tofu", "ToFu"),
    "tokenlearner": ("token_learner", "TokenLearner"),
    "tome": ("tome", "ToMe"),
    "topk": ("topk", "TopK"),
}

# Methods that are another class in a network that subsamples its tokens.
IN_PYRAMIDS = {
    "dynamicvit": ("dynamic_spatial", "DynamicSpatial"),
    "evo": ("evo_levit", "EvoPyramid"),
}

_registered: dict[str, type[Reducer]] = {}


def register(name: str, reducer: type[Reducer]) -> None:
    """Makes a reducer that lives outside this package known by `name`.

    Raises:
      UserError: if the name is taken by another class.
    """
    if name in METHODS or _registered.get(name, reducer) is not reducer:
        raise UserError(f"reduction {name!r} exists already; choose another name")
    _registered[name] = reducer


def list_reductions() -> list[str]:
    """The names of all methods, sorted."""
    return sorted({*METHODS, *_registered})


def reducer_class(name: str, *, in_pyramid: bool = False) -> type[Reducer]:
    """The class of a method, in a flat network or in one that subsamples its tokens.

    Raises:
      UserError: for an unknown name.
    """
    if name in _registered:
        return _registered[name]
    if name not in METHODS:
        raise UserError(f"unknown reduction {name!r}; {suggestion(name, list_reductions())}")
    module, attribute = IN_PYRAMIDS.get(name, METHODS[name]) if in_pyramid else METHODS[name]
    return getattr(importlib.import_module(f"evovit_jax.reduction.{module}"), attribute)


def _parse_value(text: str) -> Any:
    if ":" in text:
        return tuple(_parse_value(part) for part in text.split(":") if part)
    constants = {"true": True, "false": False, "none": None}
    if text.lower() in constants:
        return constants[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def parse(spec: str | Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """A method's name and its fields, from `"evit,keep_rate=0.7,locations=3:6:9"`.

    A mapping is taken as it is, its entry `name` the method (`{"name": "evit", ...}`); None and
    "" mean "none".

    Raises:
      UserError: for a part that is not `field=value`, a field given twice, or a name that is
        no text.
    """
    if not spec:
        return "none", {}
    if isinstance(spec, Mapping):
        fields = dict(spec)
        name = fields.pop("name", "none")
        if not all(isinstance(text, str) for text in (name, *fields)):
            raise UserError(f"reduction {spec!r}: its name and its fields' names must be texts")
        return name, fields
    name, *parts = (part.strip() for part in spec.split(","))
    fields = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not key or key in fields:
            raise UserError(f"reduction {spec!r}: {part!r} is not FIELD=VALUE, each field once")
        fields[key] = _parse_value(value)
    return name, fields


def describe(spec: str | Mapping[str, Any] | None) -> str:
    """The one-line form of a specification, as `--reduction` takes it."""
    name, fields = parse(spec)

    def text(value: Any) -> str:
        if isinstance(value, tuple | list):
            return ":".join(map(text, value)) + (":" if len(value) == 1 else "")
        return str(value).lower() if isinstance(value, bool) or value is None else str(value)

    return ",".join([name, *(f"{key}={text(value)}" for key, value in fields.items())])


def resolve(
    spec: str | Mapping[str, Any] | None, *, in_pyramid: bool = False
) -> tuple[str, type[Reducer], dict[str, Any]]:
    """A method's name, its class, and the fields given, of the types that the class declares.

    Raises:
      UserError: for an unknown method or field, or a value of another type.
    """
    name, given = parse(spec)
    reducer = reducer_class(name, in_pyramid=in_pyramid)
    return name, reducer, checked(f"reduction {name!r}", reducer.Fields, given)


def create_reducer(
    spec: str | Mapping[str, Any] | None, backbone: Backbone, *, rngs: nnx.Rngs
) -> Reducer:
    """Makes the reducer that `spec` names, for a backbone.

    Raises:
      UserError: for an unknown method or field, or a value that the method refuses.
    """
    _, reducer, given = resolve(spec, in_pyramid=backbone.is_pyramid)
    return reducer(backbone, reducer.Fields(**given), rngs=rngs)


__all__ = [
    "Backbone",
    "Reducer",
    "create_reducer",
    "describe",
    "list_reductions",
    "parse",
    "reducer_class",
    "register",
    "resolve",
]
