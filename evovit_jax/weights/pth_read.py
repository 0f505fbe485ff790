"""Reads PyTorch's `.pth` files without PyTorch, and without running what a pickle may hold.

A pickle names the functions that rebuild its objects. Here only a short list of names is known,
each to something harmless of this file; any other name is refused before anything is called.
Both formats are read: the zip archive (since PyTorch 1.6), and the stream of pickles before it.
"""

import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from evovit_jax.data.stored_files import open_regular
from evovit_jax.errors import UserError, first_line
from evovit_jax.hardware import limits

STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# A file may hold at most this many times its own bytes, unpacked and through shared storages; small
# ones anything up to the second number. PyTorch packs nothing, and ties a weight or two.
MOST_TIMES, ALWAYS = 16, 64 << 20
# Bytes of a pickle, beside which the numbers of the tensors lie: 20,000 tensors or so. Each byte
# may make an object, of a hundred bytes and in two microseconds.
MOST_PICKLE = 4 << 20
MOST_NUMBER, MOST_DIMENSIONS = 2**63, 64


def check_size(what: str, unpacked: int, size: int) -> None:
    """Refuses a file of `size` bytes in which there are far more.

    Raises:
      UserError: `unpacked` is more than any weights take.
    """
    if unpacked > max(ALWAYS, MOST_TIMES * size):
        raise UserError(f"{what} {unpacked >> 20} MB, a file of {size >> 20} MB: refused")


class Opaque:
    """Stands for an object that is not needed, such as the `args` of a training run."""

    def __init__(self, *arguments: Any):
        del arguments


class Storage:
    """Where tensors lie: their dtype, and their bytes once these are known."""

    def __init__(self, dtype: Any, count: int):
        self.dtype, self.count = np.dtype(dtype), count
        self.data: np.ndarray | None = None

    def fill(self, data: bytes) -> None:
        """Takes the bytes.

        Raises:
          UserError: if there are fewer than there must be.
        """
        if self.count < 0 or len(data) < self.count * self.dtype.itemsize:
            raise UserError(
                f"a storage has {len(data)} bytes instead of {self.count * self.dtype.itemsize}"
            )
        self.data = np.frombuffer(data, self.dtype, self.count)


class Tensor:
    """A view of a storage, as PyTorch pickles it."""

    def __init__(
        self, storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any
    ):
        del rest  # whether it needs a gradient, hooks, metadata
        numbers = (offset, *size, *stride)
        if (
            not isinstance(storage, Storage)
            or not all(_is_count(n) for n in numbers)
            or not len(size) == len(stride) <= MOST_DIMENSIONS
        ):
            raise pickle.UnpicklingError("a tensor is not made of a storage, a size and strides")
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def array(self) -> np.ndarray:
        """A copy of the values.

        Raises:
          UserError: if it reaches beyond its storage.
        """
        data = self.storage.data
        if 0 in self.size:
            return np.zeros(self.size, self.storage.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        if data is None or last >= len(data):
            raise UserError("a tensor reaches beyond the end of its storage")
        if math.prod(self.size) > len(data):  # strides of 0 could ask for any size
            raise UserError("a tensor has more values than its storage")
        strides = [s * data.itemsize for s in self.stride]
        return np.lib.stride_tricks.as_strided(data[self.offset :], self.size, strides).copy()


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST_NUMBER


def _parameter(data: Any, *rest: Any) -> Any:
    del rest
    return data


def _plain_dict(*factory: Any) -> dict:
    del factory
    return {}


def _dict_of(pairs: Any = ()) -> dict:
    pairs = list(pairs.items() if isinstance(pairs, dict) else pairs)
    _check_keys(key for key, _ in pairs)
    return dict(pairs)


def _check_keys(keys: Iterable[Any]) -> None:
    """Refuses tuples in tuples: Python looks through all of one, shared parts again and again."""
    for key in keys:
        if isinstance(key, tuple) and any(isinstance(part, tuple) for part in key):
            raise pickle.UnpicklingError("a key is a tuple of tuples")


# What a checkpoint may name. Values are of this file, Python's plain containers, or a dtype.
KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _dict_of,
    ("collections", "defaultdict"): _plain_dict,
    ("builtins", "dict"): _dict_of,
    ("__builtin__", "dict"): _dict_of,
    ("torch", "Size"): tuple,
    ("torch", "device"): Opaque,
    ("torch._utils", "_rebuild_tensor"): Tensor,
    ("torch._utils", "_rebuild_tensor_v2"): Tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("argparse", "Namespace"): Opaque,
    ("pathlib", "PosixPath"): Opaque,
    ("omegaconf.dictconfig", "DictConfig"): Opaque,
    ("numpy", "dtype"): Opaque,
    ("numpy.core.multiarray", "scalar"): Opaque,
    ("numpy._core.multiarray", "scalar"): Opaque,
    ("_codecs", "encode"): Opaque,
}
KNOWN |= {("torch", name): np.dtype(dtype) for name, dtype in STORAGES.items()}
KNOWN |= {
    ("torch", name): Opaque
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
}


class _Bounded:
    """The part of a file that a pickle may take."""

    def __init__(self, file: io.BufferedIOBase):
        self._file, self._left = file, MOST_PICKLE

    def read(self, count: int) -> bytes:
        """Up to so many bytes."""
        if count > self._left:
            raise UserError(f"its pickle has more than {MOST_PICKLE >> 20} MB: refused")
        self._left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        """A line with its end."""
        line = self._file.readline(self._left + 1)
        if len(line) > self._left:
            raise UserError(f"its pickle has more than {MOST_PICKLE >> 20} MB: refused")
        self._left -= len(line)
        return line


# The one written in Python: the other keeps its memo in a list, as long as a file may ask for.
class _Unpickler(pickle._Unpickler):
    """Knows nothing but `KNOWN`, and does nothing that takes longer than the pickle is long."""

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: io.BufferedIOBase, find_storage: Callable[[tuple], Any]):
        super().__init__(_Bounded(file), encoding="utf-8")
        self._find_storage = find_storage
        self._arguments = 0

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in KNOWN:
            raise UserError(
                f"it names {module}.{name}, which weights have no need of: refused, since "
                "loading it could run code"
            )
        return KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Any:
        return self._find_storage(pid)

    def load_reduce(self) -> None:
        """A call, whose arguments are copied: their lengths are counted."""
        arguments = self.stack[-1]
        self._arguments += sum(len(one) for one in arguments if hasattr(one, "__len__"))
        if self._arguments > MOST_PICKLE:
            raise UserError("its pickle copies more than it holds: refused")
        super().load_reduce()

    def load_build(self) -> None:
        """The attributes of an object, of which none is needed here and none may be changed."""
        self.stack.pop()
        if not isinstance(self.stack[-1], Opaque | dict):
            raise pickle.UnpicklingError("attributes of what has none")

    def load_setitem(self) -> None:
        """One item of a dict."""
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        """All since the mark are keys and values."""
        _check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        """Likewise, of a new dict."""
        _check_keys(self.stack[::2])
        super().load_dict()

    def load_additems(self) -> None:
        """All since the mark are members of a set."""
        _check_keys(self.stack)
        super().load_additems()

    def load_frozenset(self) -> None:
        """Likewise, of a new one."""
        _check_keys(self.stack)
        super().load_frozenset()

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.FROZENSET[0]] = load_frozenset


def _describe_storage(pid: Any) -> tuple[np.dtype, str, int]:
    """(dtype, key, count) of a persistent id ('storage', type, key, location, count, ...)."""
    valid = isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"
    valid = valid and isinstance(pid[1], np.dtype) and type(pid[2]) in (str, int)
    if not valid or not _is_count(pid[4]):
        raise pickle.UnpicklingError("a reference is not to a storage")
    return pid[1], str(pid[2]), pid[4]


def read_pth(path: str) -> Any:
    """The object that a `.pth` file holds, its tensors as NumPy arrays.

    Raises:
      UserError: the file is damaged, of no known format, or wants more than tensors.
    """
    try:
        with open_regular(path, limits.memory()) as file:
            if zipfile.is_zipfile(file):
                found = _read_zip(file)
            else:
                file.seek(0)
                found = _read_legacy(file)
            return _Arrays(os.fstat(file.fileno()).st_size).of(found)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is damaged (nested too deeply)") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or first_line(error)})") from None
    except (MemoryError, OverflowError):
        raise UserError(f"{path} is damaged (an impossible size)") from None
    except Exception as error:  # of many kinds, where a byte is wrong
        raise UserError(f"{path} is damaged or no PyTorch file ({first_line(error)})") from None


def _read_zip(file: io.BufferedIOBase) -> Any:
    with zipfile.ZipFile(file) as archive:
        check_size(
            "it unpacks to",
            sum(info.file_size for info in archive.infolist()),
            os.fstat(file.fileno()).st_size,
        )
        names = archive.namelist()
        pickles = [name for name in names if name.rsplit("/", 1)[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise UserError("it is a zip archive, but not one that PyTorch wrote")
        if any(name.rpartition("/")[0].endswith("/code") for name in names):
            raise UserError("it is a TorchScript program, not weights; save its state_dict()")
        root = pickles[0][: -len("data.pkl")]
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise UserError("it was written on a big-endian machine")
        storages: dict[str, Storage] = {}

        def find(pid: Any) -> Storage:
            dtype, key, count = _describe_storage(pid)
            if key not in storages:
                storages[key] = Storage(dtype, count)
                info = archive.getinfo(f"{root}data/{key}")
                if info.compress_type != zipfile.ZIP_STORED:
                    raise UserError("its tensors are compressed, which PyTorch never does")
                storages[key].fill(archive.read(info))
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(pickles[0])), find).load()


def _read_legacy(file: io.BufferedIOBase) -> Any:
    def refuse(pid: Any) -> Any:
        raise pickle.UnpicklingError("a storage where there is none")

    storages: dict[str, Storage] = {}

    def find(pid: Any) -> Storage:
        dtype, key, count = _describe_storage(pid)
        if len(pid) > 5 and pid[5] is not None:
            raise UserError("it has views of storages, as only PyTorch before 0.4 wrote them")
        return storages.setdefault(key, Storage(dtype, count))

    if _Unpickler(file, refuse).load() != LEGACY_MAGIC:
        raise UserError("it is no file of torch.save")
    if _Unpickler(file, refuse).load() != LEGACY_PROTOCOL:
        raise UserError("its format is unknown")
    system = _Unpickler(file, refuse).load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UserError("it was written on a big-endian machine")
    found = _Unpickler(file, find).load()
    for key in _Unpickler(file, refuse).load():
        _check_keys([key])
        (count,) = struct.unpack("<q", file.read(8))
        storage = storages[key]
        if count != storage.count:
            raise UserError(f"a storage has {count} values instead of {storage.count}")
        storage.fill(file.read(max(0, count) * storage.dtype.itemsize))
    return found


class _Arrays:
    """Puts an array in the place of each tensor, through dicts and lists.

    What is there twice is visited once; more arrays than a file of `size` bytes can mean are
    refused.
    """

    def __init__(self, size: int):
        self._size, self._bytes = size, 0
        self._visited: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        """`value` with arrays."""
        if not isinstance(value, Tensor | dict | list | tuple):
            return value
        if id(value) not in self._visited:
            self._visited[id(value)] = self._made(value)
        return self._visited[id(value)]

    def _made(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            array = value.array()  # no larger than its storage
            self._bytes += array.nbytes
            check_size("it holds tensors of", self._bytes, self._size)
            return array
        if isinstance(value, dict):
            return {key: self.of(item) for key, item in value.items()}
        return [self.of(item) for item in value]
