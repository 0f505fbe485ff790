"""The work directory of a run, and the config in it."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from evovit_jax.data.stored_files import expanded
from evovit_jax.errors import UserError
from evovit_jax.workdir import remote

FILE = "config.json"
MOST_JSON = 64 << 20  # bytes


def locate(workdir: epath.PathLike) -> epath.Path:
    """A work directory's whole path: on this machine, or in an object store (gs://)."""
    path = epath.Path(workdir)
    return path if remote.is_remote(path) else epath.Path(expanded(workdir, "workdir").resolve())


def read_json(path: epath.Path) -> Any:
    """What a file of JSON holds.

    Raises:
      OSError: there is no regular file of that name, it is too large, or it cannot be read.
      ValueError: it is no JSON, or deeper than anything that is written here.
    """
    text = remote.read(path, MOST_JSON).decode()
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


@contextlib.contextmanager
def kept(workdir: epath.PathLike, config: ConfigDict) -> Iterator[list[str]]:
    """Makes the work directory; the config is its own once the body has gone well.

    A start that is refused (another architecture, weights that do not fit) leaves the config of the
    run that is there.

    Yields:
      What differs from the config that was there, "FIELD: OLD -> NEW" each; empty for a new run.

    Raises:
      UserError: it cannot be written.
    """
    workdir = locate(workdir)
    path, new = workdir / FILE, workdir / f"{FILE}.new"
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    writes = jax.process_index() == 0
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        before = _read(path)
        if writes:
            remote.write(new, text)
    except OSError as error:
        raise UserError(f"the work directory {workdir} cannot be written: {error}") from error
    try:
        yield [] if before is None else differences(before, json.loads(text))
    except BaseException:
        if writes:
            new.unlink(missing_ok=True)
        raise
    if writes:
        new.replace(path)


def _read(path: epath.Path) -> dict[str, Any] | None:
    try:
        content = read_json(path)
    except (FileNotFoundError, ValueError):  # none, or one that a kill cut short
        return None
    return content if isinstance(content, dict) else None


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The fields in which two configs differ, "FIELD: OLD -> NEW" each."""
    found = []
    for name in {**old, **new}:
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name}: {a} -> {b}")
    return found


def flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config's fields by their whole names, such as "optim.learning_rate"."""
    values = {}
    for name, value in fields.items():
        inner = isinstance(value, dict)
        values |= flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return values


# What of a run's config is read here; other programs have a config.json too.
RUN_FIELDS = {"model", "reduction", "eval_transform", "mean", "std"}


def read_run(folder: epath.Path | None) -> dict[str, Any] | None:
    """The config of the training run whose work directory `folder` is, else None.

    Raises:
      UserError: the config cannot be read, or is not whole.
    """
    path = None if folder is None else folder / FILE
    try:
        if path is None or not path.is_file():
            return None
        found = read_json(path)
    except (OSError, ValueError) as error:  # UnicodeDecodeError and JSONDecodeError are the latter
        raise UserError(
            f"{path} is damaged or cannot be read ({error}); "
            "resuming the run writes it again, or give a weight file"
        ) from None
    is_run = isinstance(found, dict) and set(found) >= RUN_FIELDS
    model = found["model"] if is_run else None
    if not isinstance(model, dict) or not set(model) >= {"name", "image_size"}:
        return None
    if not isinstance(model["name"], str) or not isinstance(found["reduction"], str | None):
        raise UserError(f"{path} is damaged: its model's name and its reduction must be texts")
    return found
