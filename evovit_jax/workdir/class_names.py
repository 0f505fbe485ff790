"""What the classes of a run's training data are called, kept in its work directory.

Who looks through a run's model must not need the data that it was trained on.
"""

import json
from collections.abc import Sequence

import jax
from etils import epath

from evovit_jax.errors import UserError
from evovit_jax.workdir import remote
from evovit_jax.workdir.config_file import read_json

FILE = "class_names.json"


def write(workdir: epath.PathLike, names: Sequence[str]) -> None:
    """Keeps the names, in the order of the labels; the first of several processes writes them.

    Raises:
      UserError: the file cannot be written.
    """
    if jax.process_index():
        return
    path = epath.Path(workdir) / FILE
    try:
        remote.write(path, json.dumps(list(names), indent=0) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from error


def read(workdir: epath.PathLike) -> list[str] | None:
    """The names; None of a run that kept none, or where a kill cut the file short."""
    try:
        names = read_json(epath.Path(workdir) / FILE)
    except (OSError, ValueError):
        return None
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list else None
