"""The folder that a command writes into: found unusable before the work is done, not after."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from evovit_jax.data.stored_files import expanded
from evovit_jax.errors import UserError


def open_folder(output: str) -> pathlib.Path:
    """The folder that `--output` names, made if need be; `~` is the home directory.

    Raises:
      UserError: it has no name, is in an object store, or no file can be made in it.
    """
    if "://" in output:
        raise UserError(f"--output={output} is in an object store; give a folder of this machine")
    folder = expanded(output, "--output")
    with refusing(output):
        folder.mkdir(parents=True, exist_ok=True)
        # Permissions do not tell: file systems may be read-only or full, or take no files at all.
        with tempfile.NamedTemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
    return folder


@contextlib.contextmanager
def refusing(output: str | os.PathLike) -> Iterator[None]:
    """What the system refuses inside becomes one line.

    Raises:
      UserError: nothing can be written to `output`.
    """
    try:
        yield
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write to --output={output}: {reason}") from None
