"""Loads a model's weights from wherever they are, and exports them.

Weights are a PyTorch file (see `files`), an export of this library (an Orbax directory), or a
training run: its work directory, its folder of checkpoints, or one checkpoint of that. Folders may
be in an object store (gs://), which training writes to.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from etils import epath
from flax import nnx

from evovit_jax.data.stored_files import expanded
from evovit_jax.errors import UserError, first_line
from evovit_jax.models.batch_norm import fold_in_place, fuse
from evovit_jax.models.variables import variables
from evovit_jax.weights import files
from evovit_jax.weights.families import families_of, find_family
from evovit_jax.weights.layouts import Scheme, Tensors, default_link
from evovit_jax.weights.loaded import Loaded
from evovit_jax.weights.pth_read import check_size
from evovit_jax.weights.state_dict import read_into, write_from
from evovit_jax.workdir import config_file

ABOUT = "evovit_jax.json"  # marks an export, and says what it is
VARIABLES = "variables"


def from_torch(
    model: nnx.Module,
    tensors: Tensors,
    family: str | None = None,
    *,
    allow_missing: bool | str = False,
    allow_nonfinite: bool = False,
) -> list[str]:
    """Sets the variables of `model` from a PyTorch state dict.

    Args:
      model: changed in place, and only if all of it fits. Settings of its reducer become those
        that such weights were trained with; where they have batch norm folded in, so has the model.
      tensors: NumPy arrays by PyTorch's names.
      family: whose names they are; None finds out.
      allow_missing: True accepts variables without a tensor (they keep their values) and tensors
        without a variable; a pattern does so for those whose whole path or name it matches.
      allow_nonfinite: whether values may be NaN or Inf.

    Returns:
      What a user should know: sizes that were adapted, parts left as they are, settings changed.

    Raises:
      UserError: for gaps, leftovers, shapes that do not fit, values that are no finite numbers, or
        inconsistent copies of a tensor.
    """
    scheme = find_family(model, family, tensors).scheme
    return _read(model, tensors, scheme, allow_missing, allow_nonfinite).notes


def to_torch(model: nnx.Module, family: str | None = None) -> Tensors:
    """The state dict of `model` under the names of `family`; None for the usual ones.

    Raises:
      UserError: for a family that this model does not have.
    """
    return write_from(model, find_family(model, family).scheme(model))


def load_weights(
    model: nnx.Module,
    path: str | os.PathLike,
    *,
    family: str | None = None,
    allow_missing: bool | str = False,
    allow_nonfinite: bool = False,
) -> list[str]:
    """Sets the variables of `model` from a file, a directory, or `hf://OWNER/REPOSITORY`.

    Args:
      model: changed in place, and only if all of it fits.
      path: a `.pth`, `.safetensors` or `.npz` file, an export, a run's work directory (its newest
        checkpoint, averaged parameters if it keeps an average) or one of its checkpoints.
      family: whose names a PyTorch file has; None finds out.
      allow_missing: as in `from_torch`.
      allow_nonfinite: as in `from_torch`.

    Returns:
      What a user should know, as of `from_torch`.

    Raises:
      UserError: there is nothing at `path`, it is damaged, or does not fit the model.
    """
    given = {"allow_missing": allow_missing, "allow_nonfinite": allow_nonfinite}
    return load(model, path, family=family, **given).notes


def load(
    model: nnx.Module,
    path: str | os.PathLike,
    *,
    family: str | None = None,
    allow_missing: bool | str = False,
    allow_nonfinite: bool = False,
) -> Loaded:
    """As `load_weights`, for callers that decide by what was adapted."""
    path = str(path)
    folder = files.find_folder(path)
    remarks: list[str] = []
    if folder is not None:
        tensors, about = _read_directory(folder)
    else:
        tensors, remarks = files.read_tensors(path)
    try:
        if folder is not None:
            tensors, scheme = _native(tensors, about)
        else:
            scheme = find_family(model, family, tensors).scheme
        loaded = _read(model, tensors, scheme, allow_missing, allow_nonfinite)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return dataclasses.replace(loaded, remarks=tuple(remarks))


def save_weights(
    model: nnx.Module,
    path: str | os.PathLike,
    *,
    family: str | None = None,
    reduction: str = "",
) -> None:
    """Writes a PyTorch file (by its suffix), else an export: an Orbax directory.

    A file of that name is replaced, as is an earlier export. A `.safetensors` file also says which
    `reduction` its weights are for; the commands take that where none is asked for.

    Raises:
      UserError: the place cannot be written, or holds something else.
    """
    if "://" in str(path):
        raise UserError(f"output {path} is in an object store; write it on this machine, and copy")
    path = str(expanded(path, "output"))
    if path.endswith(files.SUFFIXES):
        files.write_tensors(path, to_torch(model, family), reduction=reduction)
        return
    target = pathlib.Path(path).absolute()
    taken = target.exists() and not (target.is_dir() and not any(target.iterdir()))
    if taken and not (target / ABOUT).is_file():
        raise UserError(f"output {path} exists and is no export; choose another name")
    with files.whole_or_nothing(str(target)) as temporary:
        _write_export(model, pathlib.Path(temporary))


def _write_export(model: nnx.Module, folder: pathlib.Path) -> None:
    values: dict[str, dict[str, np.ndarray]] = {"params": {}, "stats": {}}
    for name, variable in variables(model).items():
        kind = "params" if isinstance(variable, nnx.Param) else "stats"
        values[kind][name] = np.asarray(variable[...])
    import orbax.checkpoint as ocp  # takes two seconds, which PyTorch files do without

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(folder / VARIABLES, args=ocp.args.PyTreeSave(values))
    reducer: Any = getattr(model, "reducer", None)
    trained = getattr(reducer, "trained_settings", ())
    about = {
        "model": type(model).__name__,
        "config": dataclasses.asdict(cast(Any, model).config),
        "reducer": type(reducer).__name__,
        "settings": {name: getattr(reducer.fields, name) for name in trained},
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=1))


def _read_directory(path: epath.Path) -> tuple[Tensors, dict[str, Any]]:
    """The variables by path of an export or a run, and what an export says of itself."""
    import orbax.checkpoint as ocp

    from evovit_jax.workdir import checkpoints

    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    try:
        if (path / ABOUT).is_file():
            about = config_file.read_json(path / ABOUT)
            if not isinstance(about, dict) or not isinstance(about.get("settings", {}), dict):
                raise UserError(f"weights {path} are damaged ({ABOUT} does not say what they are)")
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                folder = path / VARIABLES
                tree = reader.metadata(folder).item_metadata.tree
                _check_sizes(tree, folder)
                kinds = {k: dict.fromkeys(v, as_numpy) for k, v in tree.items()}
                found = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=kinds))
            return {**found["params"], **found.get("stats", {})}, about
        step = int(path.name) if path.name.isdigit() and (path / "state").is_dir() else None
        params, stats = checkpoints.load_variables(path if step is None else path.parent, step)
        return {**params, **stats}, {"settings": _settings_of_run(path)}
    except UserError:
        for name in files.HUB_FILES:
            if (path / name).is_file():
                raise UserError(f"weights {path} are no run; give the file {path / name}") from None
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
        reason = first_line(error)
        raise UserError(f"weights {path} are damaged or incomplete ({reason})") from None


def _check_sizes(tree: dict[str, dict[str, Any]], folder: epath.Path) -> None:
    """Refuses an export that says it is far larger than its files."""
    held = [one for kind in tree.values() for one in kind.values()]
    said = sum(math.prod(one.shape) * np.dtype(one.dtype).itemsize for one in held)
    check_size("its arrays have", said, _bytes_in(folder))


def _bytes_in(folder: epath.Path) -> int:
    inside = list(folder.iterdir())
    return sum(_bytes_in(path) if path.is_dir() else path.stat().length for path in inside)


def _settings_of_run(path: epath.Path) -> dict[str, Any]:
    """The settings of its reducer that belong to the weights of the run that `path` is part of."""
    from evovit_jax.models import model_entry

    for folder in (path, path.parent, path.parent.parent):
        try:
            run = config_file.read_json(folder / config_file.FILE)
            entry = model_entry(run["model"]["name"])
            _, reducer, trained = entry.reduction_fields(run["reduction"])
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ):  # none there, or somebody else's
            continue
        return {name: trained[name] for name in reducer.trained_settings}
    return {}


def _native(
    values: Tensors, about: dict[str, Any]
) -> tuple[Tensors, Callable[[nnx.Module], Scheme]]:
    """Variables under their own names in PyTorch's layout, whose sizes are adapted as PyTorch's."""
    tensors = {
        path: default_link(path, np.shape(value)).layout.to_torch(np.asarray(value))
        for path, value in values.items()
    }

    def scheme(model: nnx.Module) -> Scheme:
        families = families_of(type(model))
        theirs = families[-1].scheme(model) if families else Scheme(())
        optional = {link.path for link in theirs.links if link.optional}
        links = [
            dataclasses.replace(
                default_link(path, variable.shape), names=(path,), optional=path in optional
            )
            for path, variable in variables(model).items()
        ]
        settings = about.get("settings", {})
        kept = {"heads": theirs.heads, "resize": theirs.resize, "hints": theirs.hints}
        return Scheme(tuple(links), trained_with=settings, **kept)

    return tensors, scheme


def _read(
    model: nnx.Module,
    tensors: Tensors,
    scheme: Callable[[nnx.Module], Scheme],
    allow_missing: bool | str,
    allow_nonfinite: bool,
) -> Loaded:
    """`read_into`, on a model with folded batch norm where the tensors have it folded."""
    given = {"allow_missing": allow_missing, "allow_nonfinite": allow_nonfinite}
    has_norm = any(name.endswith((".running_mean", "/mean")) for name in tensors)
    model_has = any(path.endswith("/mean") for path in variables(model))
    if has_norm or not model_has:
        return read_into(model, tensors, scheme(model), **given)
    folded = fuse(model)
    read_into(folded, tensors, scheme(folded), **given)  # raises before a change
    fold_in_place(model)
    loaded = read_into(model, tensors, scheme(model), **given)
    return dataclasses.replace(loaded, folded=True)
