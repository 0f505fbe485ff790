"""Files that nothing should be read from."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator

IRREGULAR = ("pipe", "socket", "folder", "zero", "null", "gone", "loop", "huge")


@contextlib.contextmanager
def not_for_ever(seconds: float = 20) -> Iterator[None]:
    """Raises TimeoutError where something waits for so long, for a pipe that nobody writes to."""

    def end(number, frame):
        raise TimeoutError(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def irregular(folder, kind: str) -> str:
    """A file's name that nothing should be read from."""
    path = str(folder / f"{kind}.jpg")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path) if len(path) > 100 else path)
    elif kind == "folder":
        os.mkdir(path)
    elif kind == "loop":
        os.symlink(path, path)
    elif kind == "huge":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    else:
        os.symlink({"zero": "/dev/zero", "null": "/dev/null"}.get(kind, "/nowhere"), path)
    return path
