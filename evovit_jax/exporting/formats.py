"""What an export may be, by name; the library that a format takes is imported when it is asked for.

Tested in tests/exporting/checked_test.py.
"""

import dataclasses
import importlib
import importlib.util
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from evovit_jax.errors import UserError

# A network as a function of images `[b, s, s, 3]` alone.
Logits = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Images:
    """What a network takes.

    Attributes:
      shape: (rows, columns, channels) of an image.
      dtype: "float32" or "uint8".
    """

    shape: tuple[int, int, int]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Format:
    """A way to write a network.

    Attributes:
      name: as `--format` takes it.
      write: writes a function of images to a path, the batch's size left open; what the manifest is
        to say of it by name.
      read: what is at a path as a function of images, made by the format's own runtime alone.
      libraries: whose versions the manifest names.
    """

    name: str
    write: Callable[[Logits, Images, pathlib.Path], dict]
    read: Callable[[pathlib.Path], Callable[[np.ndarray], np.ndarray]]
    libraries: tuple[str, ...]


# By name: the module in this room, the extra that it takes, and the modules of that.
_TABLE = {
    "stablehlo": ("stablehlo", "", ()),
    "onnx": ("onnx_model", "onnx", ("onnx", "onnxruntime")),
    "saved_model": ("saved_model", "tf", ("tensorflow",)),
}
NAMES = tuple(_TABLE)


def find(name: str) -> Format:
    """A format that can be written here.

    Raises:
      UserError: a library that it takes is not installed.
    """
    module, extra, needed = _TABLE[name]
    missing = [library for library in needed if importlib.util.find_spec(library) is None]
    if missing:
        raise UserError(
            f"--format={name} needs {' and '.join(missing)}: pip install 'evovit_jax[{extra}]'"
        )
    found = importlib.import_module(f"evovit_jax.exporting.{module}")
    return Format(name, found.write, found.read, ("jax", "jaxlib", *needed))
