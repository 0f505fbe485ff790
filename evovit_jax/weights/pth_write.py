"""Writes PyTorch's `.pth` format without PyTorch: what `torch.save(state_dict)` would write.

tests/weights/pth_read_test.py reads what it writes.
"""

import pickle
import struct
import zipfile

import numpy as np

from evovit_jax.errors import UserError
from evovit_jax.weights.layouts import Tensors
from evovit_jax.weights.pth_read import STORAGES

_KINDS = {np.dtype(dtype): name for name, dtype in STORAGES.items()}
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # the same tensors make the same file


def write_pth(path: str, tensors: Tensors) -> None:
    """Writes a state dict that `torch.load(path, weights_only=True)` reads.

    Raises:
      UserError: a dtype that PyTorch does not have.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, data: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(f"archive/{name}", _FIXED_TIME), data)

        add("data.pkl", _pickled(tensors))
        add("byteorder", b"little")
        for number, value in enumerate(tensors.values()):
            add(f"data/{number}", np.asarray(value, order="C").tobytes())
        add("version", b"3\n")


def _pickled(tensors: Tensors) -> bytes:
    """The pickle of an OrderedDict of tensors, whose values are in storages 0, 1, ..."""
    out = [pickle.PROTO, b"\x02", _global("collections", "OrderedDict"), pickle.EMPTY_TUPLE]
    out += [pickle.REDUCE, pickle.MARK]
    for number, (name, value) in enumerate(tensors.items()):
        strides = tuple(s // value.itemsize for s in np.asarray(value, order="C").strides)
        out += [_text(name), _global("torch._utils", "_rebuild_tensor_v2"), pickle.MARK]
        out += [_storage(number, value), pickle.BINPERSID, _whole(0)]
        out += [_tuple(value.shape), _tuple(strides), pickle.NEWFALSE]
        out += [_global("collections", "OrderedDict"), pickle.EMPTY_TUPLE, pickle.REDUCE]
        out += [pickle.TUPLE, pickle.REDUCE]
    return b"".join([*out, pickle.SETITEMS, pickle.STOP])


def _storage(number: int, value: np.ndarray) -> bytes:
    kind = _KINDS.get(value.dtype)
    if kind is None:
        raise UserError(f"PyTorch has no dtype {value.dtype}")
    parts = [_text("storage"), _global("torch", kind), _text(str(number)), _text("cpu")]
    return b"".join([pickle.MARK, *parts, _whole(value.size), pickle.TUPLE])


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _whole(number: int) -> bytes:
    return pickle.LONG1 + b"\x08" + struct.pack("<q", number)


def _tuple(numbers: tuple[int, ...]) -> bytes:
    return b"".join([pickle.MARK, *map(_whole, numbers), pickle.TUPLE])
