"""Where a command writes to: found unusable before the work is done, not after."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from evovit_jax.data.stored_files import expanded
from evovit_jax.errors import UserError

FLAG = "--output"


def open_folder(output: str, flag: str = FLAG) -> pathlib.Path:
    """The folder that `flag` names, made if need be; `~` is the home directory.

    Raises:
      UserError: it has no name, is in an object store, or no file can be made in it.
    """
    if "://" in output:
        raise UserError(f"{flag}={output} is in an object store; give a folder of this machine")
    folder = expanded(output, flag)
    with refusing(output, flag):
        folder.mkdir(parents=True, exist_ok=True)
        # Permissions do not tell: file systems may be read-only or full, or take no files at all.
        with tempfile.NamedTemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
    return folder


def open_file(output: str, flag: str, ending: str) -> pathlib.Path:
    """The file that `flag` names, to be written later; its folder is made if need be.

    Raises:
      UserError: it has another ending than `ending`, is a folder, or its folder cannot be used.
    """
    path = expanded(output, flag)
    if path.suffix.lower() != ending:
        raise UserError(f"{flag}={output} must end in {ending}")
    open_folder(os.path.dirname(output) or ".", flag)
    if path.is_dir():
        raise UserError(f"{flag}={output} is a folder; name a file")
    return path


@contextlib.contextmanager
def whole_file(path: pathlib.Path, flag: str = FLAG) -> Iterator[pathlib.Path]:
    """A file to write in the place of `path`, which it then replaces, if it was written.

    A link of that name is replaced, not what it leads to.

    Raises:
      UserError: it cannot be written.
    """
    folder = path.parent
    with refusing(folder, flag), tempfile.TemporaryDirectory(dir=folder) as made:
        whole = pathlib.Path(made) / f"whole{path.suffix}"
        yield whole
        whole.replace(path)


@contextlib.contextmanager
def refusing(output: str | os.PathLike, flag: str = FLAG) -> Iterator[None]:
    """What the system refuses inside becomes one line.

    Raises:
      UserError: nothing can be written to `output`.
    """
    try:
        yield
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write to {flag}={output}: {reason}") from None
