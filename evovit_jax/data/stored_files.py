"""Files and folders that users name, and files that others made: opened only where that is safe.

A name may stand for a pipe that nobody writes to, a device without an end, or a file of terabytes.
"""

import errno
import os
import pathlib
import stat
from typing import BinaryIO

from evovit_jax.errors import UserError

# Bytes of an image file, and pixels of an image (150 MB decoded). Both are a few times what cameras
# make; `max_image_pixels` of a config, and the flag of that name, change the second.
MOST_BYTES = 256 << 20
MOST_PIXELS = 50_000_000


def expanded(path: str | os.PathLike, what: str) -> pathlib.Path:
    """A path that a user gave, with the home directory in the place of `~`.

    Args:
        path: as given.
        what: what gave it, for the message: "--output".

    Raises:
        UserError: it is empty, of a user who does not exist, or no name that a file can have.
    """
    text = os.fspath(path)
    if not text:
        raise UserError(f"{what} is empty; give a path")
    try:
        whole = pathlib.Path(text).expanduser()
        os.lstat(whole)
    except RuntimeError:
        raise UserError(f"{what}={text}: there is no home directory of that user") from None
    except ValueError:
        raise UserError(f"{what}={text}: no path has such characters") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{what}={text}: the name is too long") from None
    return whole


def open_regular(path: str | os.PathLike, most: int = MOST_BYTES) -> BinaryIO:
    """A regular file, to be read; links are followed.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        OSError: it cannot be read, is no regular file (a folder, a pipe, a socket, a device), or is
            larger.
    """
    try:
        found = os.stat(path)
    except ValueError:
        raise OSError("no path has such characters") from None
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no regular file")
    if found.st_size > most:
        raise OSError(f"it has {found.st_size >> 20} MB, more than {most >> 20}")
    # Whatever stands there by now, opening it does not wait.
    return open(path, "rb", opener=_without_waiting)


def read_regular(path: str | os.PathLike, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as `open_regular`.
    """
    with open_regular(path, most) as file:
        return file.read(os.fstat(file.fileno()).st_size) or b""


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
