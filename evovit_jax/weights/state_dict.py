"""Reads the tensors of a PyTorch state dict into a model, and writes a model as one."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from evovit_jax import rules
from evovit_jax.errors import UserError, some
from evovit_jax.models.variables import variables
from evovit_jax.reduction.typed_fields import checked
from evovit_jax.weights.layouts import Link, Scheme, Tensors, check_same
from evovit_jax.weights.loaded import Loaded, Shape

# What the numbers of a tensor may be.
KINDS = (jnp.floating, jnp.integer, jnp.bool_)
# Where a reducer's parameters are all that is missing.
DENSE = "these weights are of the network without them: allow_missing='reducer/.*' starts them anew"


def read_into(
    model: nnx.Module,
    tensors: Tensors,
    scheme: Scheme,
    *,
    allow_missing: bool | str = False,
    allow_nonfinite: bool = False,
) -> Loaded:
    """Sets every variable of `model` from `tensors`; the model changes only if all of it fits.

    Args:
      model: changed in place.
      tensors: by name, PyTorch's layout.
      scheme: how this kind of checkpoint stores this model.
      allow_missing: True lets variables keep their values where the checkpoint has none and
        ignores tensors that the model has no place for; a pattern does so only for the variables
        (or tensors) whose whole path (or name) it matches.
      allow_nonfinite: whether values may be NaN or Inf.

    Raises:
      UserError: for gaps, leftovers, shapes that do not fit, values that are no finite numbers, or
        inconsistent copies of a tensor.
    """
    rest = _unpacked(tensors, scheme)
    held = variables(model)
    classes = _other_classes(rest, scheme, held)
    fitted, missing = _Fitted(scheme), []
    for link in scheme.links:
        shape = held[link.path].shape
        absent = [name for name in link.names if name not in rest]
        if absent:
            if not link.optional or len(absent) < len(link.names):
                missing.append(link.path)
            continue
        parts = [rest.pop(name) for name in link.names]
        is_head = re.fullmatch(scheme.heads, link.path)
        if not (classes and is_head and _differs(link, parts, shape)):
            fitted.add(link, parts, held[link.path])
    _check_buffers(rest, scheme, other_grid=bool(fitted.resized))
    unused = tuple(name for name in rest if re.fullmatch(scheme.spare, name))
    ignored = tuple(name for name in rest if name not in unused)
    _account(missing, ignored, allow_missing, scheme.hints)
    bad = fitted.nonfinite
    if bad and not allow_nonfinite:
        raise UserError(f"NaN or Inf in {some(bad)}; allow_nonfinite loads them as they are")
    settings, kept = _other_settings(model, scheme)
    _change(model, fitted.values, settings)
    return Loaded(
        classes=classes,
        resized=fitted.resized,
        unused=unused,
        missing=tuple(missing),
        ignored=ignored,
        untrained=fitted.untrained(),
        settings=settings,
        kept=kept,
        integers=tuple(fitted.integers),
        nonfinite=tuple(bad),
    )


def _change(model: nnx.Module, values: Tensors, settings: Mapping[str, Any]) -> None:
    held = variables(model)
    for path, value in values.items():
        held[path].set_value(jnp.asarray(value))
    if settings:
        model.reducer.fields = dataclasses.replace(model.reducer.fields, **settings)


def write_from(model: nnx.Module, scheme: Scheme) -> Tensors:
    """All tensors of `model`, by their names in that kind of checkpoint."""
    held = variables(model)
    out: Tensors = {}
    for link in scheme.links:
        value = np.asarray(held[link.path][...])
        if not np.issubdtype(value.dtype, np.floating):
            value = value.astype(np.int64)  # PyTorch's counters
        out |= link.write(value)
    out |= {name: np.array(value) for name, value in scheme.buffers.items()}
    for first, others in scheme.aliases.items():
        out |= dict.fromkeys(others, out[first])
    for repacking in reversed(scheme.repackings):
        out = repacking.pack(out)
    return out


def _unpacked(tensors: Tensors, scheme: Scheme) -> Tensors:
    """The tensors as the links name them, each once."""
    rest = {name: np.asarray(value) for name, value in tensors.items()}
    for repacking in scheme.repackings:
        rest = repacking.unpack(rest)
    for first, others in scheme.aliases.items():
        for name in others:
            if name not in rest:
                continue
            value = rest.pop(name)
            if first in rest:
                check_same(name, value, rest[first], f"a copy of {first}")
            else:
                rest[first] = value
    return rest


def _other_classes(tensors: Tensors, scheme: Scheme, held: dict) -> tuple[int, int] | None:
    """(the file's, the model's) number of classes where they differ; all heads must agree."""
    sizes = {"file": set(), "model": set()}
    for link in scheme.links:
        is_linear = link.path.endswith(("kernel", "bias")) and "/bn/" not in link.path
        if re.fullmatch(scheme.heads, link.path) and is_linear and link.names[0] in tensors:
            value = tensors[link.names[0]]
            axis = link.class_axis
            sizes["file"].add(value.shape[axis] if value.ndim > axis else 0)
            sizes["model"].add(held[link.path].shape[-1])
    if sizes["file"] == sizes["model"] or not sizes["file"]:
        return None
    if len(sizes["file"]) > 1:
        raise UserError(
            f"the checkpoint's heads disagree on the number of classes: {sorted(sizes['file'])}"
        )
    return sizes["file"].pop(), sizes["model"].pop()


def _differs(link: Link, found: list[np.ndarray], shape: tuple[int, ...]) -> bool:
    """Whether a head's tensor differs from what the model needs in its number of classes only."""
    value, expected = found[0].shape, link.shapes(shape)[0]
    axis = link.class_axis
    others = [list(size) for size in (value, expected)]
    if len(value) != len(expected) or value == expected:
        return False
    for size in others:
        del size[axis]
    return others[0] == others[1]


class _Fitted:
    """The values of a model's variables, and what there is to say of their tensors.

    Attributes:
      values: in the variable's shape and dtype, by its path.
      resized: (shape there, shape here) of each tensor that was interpolated.
      integers: tensors of whole numbers for variables that are not.
      nonfinite: tensors with NaN or Inf, or with what is too large for the variable's dtype.
    """

    def __init__(self, scheme: Scheme):
        self._scheme = scheme
        self.values: dict[str, np.ndarray] = {}
        self.resized: dict[str, tuple[Shape, Shape]] = {}
        self.integers: list[str] = []
        self.nonfinite: list[str] = []

    def add(self, link: Link, parts: list[np.ndarray], variable: nnx.Variable) -> None:
        """Adds one variable.

        Raises:
          UserError: its tensors are no numbers, or not of the shape that it needs.
        """
        value = self._fit(link, parts, variable.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            self.values[link.path] = value.astype(variable.dtype)
        is_real = jnp.issubdtype(variable.dtype, jnp.floating)
        if is_real and not jnp.issubdtype(value.dtype, jnp.floating):
            self.integers += link.names
        if not np.isfinite(self.values[link.path] if is_real else value).all():
            self.nonfinite += link.names

    def untrained(self) -> tuple[str, ...]:
        """The parts of the network that a checkpoint may be without, and this one is."""
        absent = [x.path for x in self._scheme.links if x.optional and x.path not in self.values]
        return tuple(sorted({p.split("/")[0] for p in absent if not p.endswith("/count")}))

    def _fit(self, link: Link, parts: list[np.ndarray], shape: Shape) -> np.ndarray:
        for name, value in zip(link.names, parts, strict=True):
            if not any(jnp.issubdtype(value.dtype, kind) for kind in KINDS):
                raise UserError(f"tensor {name} is of {value.dtype}, which no weights are")
        expected, resize = link.shapes(shape), self._scheme.resize.get(link.path)
        if resize and parts[0].shape != expected[0]:
            other = resize(parts[0].astype(np.float32), expected[0])
            if other.shape == expected[0]:
                self.resized[link.names[0]] = (parts[0].shape, expected[0])
                parts = [other]
        for name, value, wanted in zip(link.names, parts, expected, strict=True):
            if value.shape != wanted:
                raise UserError(
                    f"tensor {name} has shape {value.shape}, the model needs {wanted}; "
                    "is it another model's checkpoint?"
                )
        return link.read(parts)


def _check_buffers(rest: Tensors, scheme: Scheme, *, other_grid: bool) -> None:
    """Takes what follows from the architecture out of `rest`, and checks it."""
    for name, expected in scheme.buffers.items():
        value = rest.pop(name, expected)
        if value.shape == expected.shape or not other_grid:
            check_same(name, value, expected, "it follows from the architecture")


def _account(
    missing: Sequence[str], left: Sequence[str], allow: bool | str, hints: Mapping[str, str]
) -> None:
    """Every variable and every tensor must be accounted for, or the gap asked for."""
    pattern = None if isinstance(allow, bool) else rules.compiled(allow, "allow_missing")

    def allowed(name: str) -> bool:
        return bool(pattern.fullmatch(name)) if pattern else allow

    gaps = [path for path in missing if not allowed(path)]
    leftovers = [name for name in left if not allowed(name)]
    if not gaps and not leftovers:
        return
    parts = [f"it lacks {some(gaps)}"] if gaps else []
    parts += [f"the model has no place for its {some(leftovers)}"] if leftovers else []
    if gaps and not leftovers and all(gap.startswith("reducer/") for gap in gaps):
        hints = {**hints, "reducer/.*": DENSE}
    told = [hint for pattern, hint in hints.items() if any(re.fullmatch(pattern, g) for g in gaps)]
    raise UserError(
        f"the checkpoint does not fit the model: {'; '.join(parts)}; "
        + "; ".join([*told, "allow_missing (in training init_allow_missing) loads the rest"])
    )


def _other_settings(model: nnx.Module, scheme: Scheme) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the weights were trained with and the model was not: (to be changed, to be left).

    What the model was made with on purpose, an ablation, is left.

    Raises:
      UserError: a setting is none that the reducer can have.
    """
    fields = getattr(getattr(model, "reducer", None), "fields", None)
    others = {
        name: value
        for name, value in scheme.trained_with.items()
        if hasattr(fields, name) and getattr(fields, name) != value
    }
    others = checked("what these weights were trained with", type(fields), others) if others else {}
    changes = {name: value for name, value in others.items() if _is_default(fields, name)}
    return changes, {name: value for name, value in others.items() if name not in changes}


def _is_default(fields: object, name: str) -> bool:
    defaults = {field.name: field.default for field in dataclasses.fields(fields)}
    return getattr(fields, name) == defaults[name]
