"""Reads the tensors of a PyTorch state dict into a model, and writes a model as one."""

import dataclasses
import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from evovit_jax.errors import UserError, some
from evovit_jax.weights.layouts import Link, Scheme, Tensors, check_same, variables

# What is said of a checkpoint with other classes; whoever learns from the logits looks for it.
HEADS_KEPT = "its heads keep their initial values"
# Where a reducer's parameters are all that is missing.
DENSE = "these weights are of the network without them: allow_missing='reducer/.*' starts them anew"


def read_into(
    model: nnx.Module, tensors: Tensors, scheme: Scheme, *, allow_missing: bool | str = False
) -> list[str]:
    """Sets every variable of `model` from `tensors`; the model changes only if all of it fits.

    Args:
      model: changed in place.
      tensors: by name, PyTorch's layout.
      scheme: how this kind of checkpoint stores this model.
      allow_missing: True lets variables keep their values where the checkpoint has none and
        ignores tensors that the model has no place for; a pattern does so only for the variables
        (or tensors) whose whole path (or name) it matches.

    Returns:
      What a user should know: sizes that were adapted, parts that were left as they are.

    Raises:
      UserError: for gaps, leftovers, shapes that do not fit, or inconsistent copies of a tensor.
    """
    rest = _without_aliases(tensors, scheme)
    held = variables(model)
    new: dict[str, np.ndarray] = {}
    notes: list[str] = []
    missing: list[str] = []
    classes = _other_classes(rest, scheme, held)
    for link in scheme.links:
        shape = held[link.path].shape
        absent = [name for name in link.names if name not in rest]
        if absent:
            if not link.optional or len(absent) < len(link.names):
                missing += [link.path]
            continue
        found = [rest.pop(name) for name in link.names]
        if classes and re.fullmatch(scheme.heads, link.path) and _differs(link, found, shape):
            continue
        new[link.path] = _fit(link, found, shape, scheme, notes)
    for name, value in scheme.buffers.items():
        if name in rest:
            _check_buffer(name, rest.pop(name), value, notes)
    spare = [name for name in rest if re.fullmatch(scheme.spare, name)]
    if spare:
        notes.append(f"without use in this model: {some(spare)}")
    left = [name for name in rest if name not in spare]
    _account(missing, left, allow_missing, scheme.hints, notes)
    if classes:
        notes.insert(
            0,
            f"the checkpoint has {classes[0]} classes, the model {classes[1]}: {HEADS_KEPT}",
        )
    absent = [link.path for link in scheme.links if link.path not in new and link.optional]
    parts = sorted({path.split("/")[0] for path in absent if not path.endswith("/count")})
    if parts:
        notes.append(f"not in the checkpoint, left at their initial values: {some(parts)}")
    _set(model, held, new)
    return notes + _apply_settings(model, scheme)


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
    return out


def _without_aliases(tensors: Tensors, scheme: Scheme) -> Tensors:
    rest = {name: np.asarray(value) for name, value in tensors.items()}
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
            sizes["file"].add(value.shape[link.class_axis] if value.ndim else 0)
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


def _fit(
    link: Link,
    found: list[np.ndarray],
    shape: tuple[int, ...],
    scheme: Scheme,
    notes: list[str],
) -> np.ndarray:
    expected = link.shapes(shape)
    if link.path in scheme.resize and found[0].shape != expected[0]:
        resized = scheme.resize[link.path](found[0].astype(np.float32), expected[0])
        if resized.shape == expected[0]:
            notes.append(f"{link.names[0]} interpolated from {found[0].shape} to {expected[0]}")
            found = [resized]
    for name, value, wanted in zip(link.names, found, expected, strict=True):
        if value.shape != wanted:
            raise UserError(
                f"tensor {name} has shape {value.shape}, the model needs {wanted}; "
                "is it another model's checkpoint?"
            )
    return link.read(found)


def _check_buffer(name: str, value: np.ndarray, expected: np.ndarray, notes: list[str]) -> None:
    if value.shape != expected.shape and any("interpolated" in note for note in notes):
        return  # of the other grid
    check_same(name, value, expected, "it follows from the architecture")


def _account(
    missing: list[str],
    left: list[str],
    allow: bool | str,
    hints: Mapping[str, str],
    notes: list[str],
) -> None:
    """Every variable and every tensor must be accounted for, or the gap asked for."""

    def allowed(name: str) -> bool:
        return allow if isinstance(allow, bool) else bool(re.fullmatch(allow, name))

    gaps = [path for path in missing if not allowed(path)]
    leftovers = [name for name in left if not allowed(name)]
    if gaps or leftovers:
        parts = [f"it lacks {some(gaps)}"] if gaps else []
        parts += [f"the model has no place for its {some(leftovers)}"] if leftovers else []
        if gaps and not leftovers and all(gap.startswith("reducer/") for gap in gaps):
            hints = {**hints, "reducer/.*": DENSE}
        told = [
            hint for pattern, hint in hints.items() if any(re.fullmatch(pattern, g) for g in gaps)
        ]
        raise UserError(
            f"the checkpoint does not fit the model: {'; '.join(parts)}; "
            + "; ".join([*told, "allow_missing (in training init_allow_missing) loads the rest"])
        )
    if missing:
        notes.append(f"not in the checkpoint, left as they are: {some(missing)}")
    if left:
        notes.append(f"in the checkpoint, ignored: {some(left)}")


def _set(model: nnx.Module, held: dict[str, nnx.Variable], new: dict[str, np.ndarray]) -> None:
    state = nnx.to_flat_state(nnx.state(model))
    paths = {"/".join(map(str, path)): path for path, _ in state}
    values = {
        paths[path]: held[path].replace(jnp.asarray(value.astype(held[path].dtype)))
        for path, value in new.items()
    }
    nnx.update(model, nnx.from_flat_state(values))


def _apply_settings(model: nnx.Module, scheme: Scheme) -> list[str]:
    fields = getattr(getattr(model, "reducer", None), "fields", None)
    others = {
        name: value
        for name, value in scheme.trained_with.items()
        if hasattr(fields, name) and getattr(fields, name) != value
    }
    # What the model was made with on purpose, an ablation, stays.
    changes = {name: value for name, value in others.items() if _is_default(fields, name)}
    notes = []
    if changes:
        model.reducer.fields = dataclasses.replace(fields, **changes)
        said = ", ".join(f"{name}={value}" for name, value in changes.items())
        notes.append(f"set what these weights were trained with: {said}")
    if len(others) > len(changes):
        said = ", ".join(f"{name}={others[name]}" for name in others if name not in changes)
        notes.append(f"kept as the model was made, though these weights were trained with {said}")
    return notes


def _is_default(fields: object, name: str) -> bool:
    defaults = {field.name: field.default for field in dataclasses.fields(fields)}
    return getattr(fields, name) == defaults[name]
