"""Files that are written on this machine and copied to where the work directory is.

An object store (gs://) takes whole objects only: a line cannot be appended to a file there, and
event files and profiler traces are written by code that knows local folders alone.
"""

import contextlib
import os
import pathlib
import secrets
import shutil
import tempfile

from etils import epath

from evovit_jax.data.stored_files import read_regular


class Mirror:
    """A local folder that stands for a work directory: itself, or one whose files are copied there.

    Attributes:
      folder: where to write.
    """

    def __init__(self, workdir: epath.PathLike):
        self._target = epath.Path(workdir)
        self._copied: dict[pathlib.Path, tuple[int, int]] = {}
        self._is_remote = is_remote(workdir)
        folder = tempfile.mkdtemp(prefix="evovit_jax_") if self._is_remote else workdir
        self.folder = pathlib.Path(folder)

    def push(self, name: str = "*") -> None:
        """Copies what changed since the last time of a file, of a folder, or of all ("*")."""
        if not self._is_remote:
            return
        for top in self.folder.glob(name):
            for file in [top] if top.is_file() else sorted(top.rglob("*")):
                self._push_file(file)

    def close(self) -> None:
        """Copies what is left to copy, and leaves no folder on this machine."""
        if self._is_remote:
            self.push()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _push_file(self, file: pathlib.Path) -> None:
        if not file.is_file():
            return
        now = (file.stat().st_size, file.stat().st_mtime_ns)
        if self._copied.get(file) == now:
            return
        target = self._target / file.relative_to(self.folder).as_posix()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
        self._copied[file] = now


def read(path: epath.Path, most: int) -> bytes:
    """The content of a file, here or in an object store.

    Raises:
      OSError: there is none, it cannot be read, or it is here and no regular file of at most `most`
        bytes.
    """
    return path.read_bytes() if is_remote(path) else read_regular(path, most)


def write(path: epath.Path, text: str) -> None:
    """Puts a file in the place of whatever stands there, at once: nobody reads half of it.

    Raises:
      OSError: it cannot be written.
    """
    if is_remote(path):
        path.write_text(text)
        return
    beside = pathlib.Path(f"{path}.{secrets.token_hex(8)}")
    try:
        beside.write_text(text)
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is in an object store (gs://, s3://)."""
    return "://" in str(epath.Path(path))
