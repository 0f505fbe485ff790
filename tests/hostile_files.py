"""Files that nothing should be read from."""

import os
import socket

IRREGULAR = ("pipe", "socket", "folder", "zero", "null", "gone", "loop", "huge")


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
