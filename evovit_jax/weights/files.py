"""Weight files: `.pth`, `.safetensors`, `.npz`, their shards, and `hf://` names, as NumPy arrays.

Nothing is written before everything has been computed, and a file appears whole or not at all.
"""

import contextlib
import functools
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from evovit_jax.data.stored_files import expanded, open_regular, read_regular
from evovit_jax.errors import UserError, first_line, some
from evovit_jax.hardware import limits
from evovit_jax.weights.layouts import Tensors
from evovit_jax.weights.pth_read import check_size, read_pth
from evovit_jax.weights.pth_write import write_pth
from evovit_jax.workdir import config_file

PTH = (".pth", ".pt", ".bin", ".tar", ".ckpt")
SUFFIXES = (*PTH, ".safetensors", ".npz")
HUB = "hf://"
# Where a checkpoint keeps its weights, beside an optimiser and the like; the first that is there.
PLACES = ("model", "state_dict", "module", "model_state", "state_dict_ema", "model_ema", "weights")
INDEX = ".index.json"  # of a checkpoint that is cut into several files, its shards
HUB_FILES = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin")
SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def is_weight_file(path: str) -> bool:
    """Whether `path` names a file of PyTorch's or Google's tensors, by its suffix or `hf://`."""
    return path.startswith(HUB) or path.endswith((*SUFFIXES, INDEX))


def read_tensors(path: str) -> tuple[Tensors, list[str]]:
    """The tensors of a file by name, and what a user should know of how they were found.

    Raises:
      UserError: there is no such file, it is damaged, or holds no tensors.
    """
    path = fetch(path) if path.startswith(HUB) else path
    if "://" not in path:
        path = str(expanded(path, "weights"))
    if "://" in path and is_weight_file(path):
        raise UserError(
            f"weights {path}: files of an object store are not read; copy it to this machine"
        )
    if not os.path.isfile(path):
        found = "it is no regular file" if os.path.exists(path) else "no such file"
        raise UserError(f"weights {path}: {found}")
    if path.endswith(INDEX):
        return _read_shards(path), []
    if path.endswith(".safetensors"):
        return _read_safetensors(path), []
    if path.endswith(".npz"):
        return read_npz(path), []
    if path.endswith(PTH):
        return state_dict(read_pth(path), path)
    raise UserError(f"weights {path}: the name must end in one of {', '.join(SUFFIXES)}")


def state_dict(found: Any, path: str) -> tuple[Tensors, list[str]]:
    """The weights of what a `.pth` file holds: a state dict, or one inside a checkpoint.

    Raises:
      UserError: there is none.
    """
    notes: list[str] = []
    if isinstance(found, Mapping) and not _is_state_dict(found):
        places = [name for name in PLACES if _is_state_dict(found.get(name))]
        if places:
            notes += [f"its entry {places[0]!r} is used"] if places[0] != "model" else []
            if len(places) > 1:
                notes.append(f"it also has {some(map(repr, places[1:]))}; {places[0]!r} is used")
            found = found[places[0]]
    if not _is_state_dict(found):
        raise UserError(f"{path} holds no state dict (a dict of tensors by name)")
    tensors = {name: np.asarray(value) for name, value in found.items()}
    prefix = "module."  # of torch's DistributedDataParallel
    if all(name.startswith(prefix) for name in tensors):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors, notes


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, np.ndarray) for k, v in value.items())
    )


def _read_safetensors(path: str) -> Tensors:
    from safetensors import deserialize

    try:
        found = deserialize(read_regular(path, limits.memory()))
        return {
            name: np.frombuffer(entry["data"], SAFETENSORS_DTYPES[entry["dtype"]]).reshape(
                entry["shape"]
            )
            for name, entry in found
        }
    except KeyError as error:
        raise UserError(
            f"{path} has tensors of dtype {error.args[0]}, which are not read"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    except Exception as error:  # of many kinds, where a byte is wrong
        raise UserError(f"{path} is damaged or no safetensors file ({first_line(error)})") from None


def stored_reduction(path: str) -> str | None:
    """The reduction, as `--reduction` takes it, that a file was made for; None where it says none.

    A file that cannot be read says none: reading its tensors tells why.
    """
    from safetensors import SafetensorError, safe_open

    if not path.endswith(".safetensors") or "://" in path:
        return None
    try:
        local = str(expanded(path, "weights"))
        if not os.path.isfile(local):  # a pipe would be waited for
            return None
        with safe_open(local, framework="numpy") as file:
            return (file.metadata() or {}).get("reduction")
    except (OSError, SafetensorError, UserError):
        return None


def shards(path: str) -> dict[str, str]:
    """The file, beside the index at `path`, that each tensor is in.

    Raises:
      UserError: the index is damaged, or names what is no weight file beside it.
    """
    try:
        places = config_file.read_json(epath.Path(path))["weight_map"]
        found = {str(tensor): str(file) for tensor, file in places.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or no index of shards ({first_line(error)})") from None
    for file in found.values():
        if pathlib.PurePath(file).name != file or not file.endswith(SUFFIXES):
            raise UserError(f"{path} names {file!r}, which is no weight file beside it")
    return found


def _read_shards(path: str) -> Tensors:
    places, tensors = shards(path), {}
    for file in sorted(set(places.values())):
        tensors |= read_tensors(os.path.join(os.path.dirname(path), file))[0]
    lacking = sorted(set(places) - set(tensors))
    if lacking or not tensors:
        raise UserError(f"{path}: its shards lack {some(lacking) or 'every tensor'}")
    return tensors


def read_npz(path: str) -> Tensors:
    """The arrays of an `.npz` file by name; nothing pickled, and no more than such a file may hold.

    Raises:
      UserError: it is damaged, or unpacks to far more than its size.
    """
    try:
        with open_regular(path, limits.memory()) as file:
            if zipfile.is_zipfile(file):
                unpacked = sum(entry.file_size for entry in zipfile.ZipFile(file).infolist())
                check_size(f"{path} unpacks to", unpacked, os.path.getsize(path))
            file.seek(0)
            found = np.load(file, allow_pickle=False)
            if not hasattr(found, "files"):
                raise UserError(f"{path} is damaged or no .npz file (it is a single array)")
            return {name: found[name] for name in found.files}
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    except Exception as error:  # of many kinds, where a byte is wrong
        raise UserError(f"{path} is damaged or no .npz file ({first_line(error)})") from None


def fetch(name: str) -> str:
    """The local file of `hf://OWNER/REPOSITORY[/FILE]`, from the hub or its local cache.

    Raises:
      UserError: the hub's client is not installed, or there is no such file.
    """
    owner, _, rest = name.removeprefix(HUB).partition("/")
    repository, _, file = rest.partition("/")
    if not owner or not repository:
        raise UserError(f"weights {name}: say hf://OWNER/REPOSITORY or hf://OWNER/REPOSITORY/FILE")
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise UserError(
            f"weights {name}: huggingface_hub is not installed; pip install 'evovit_jax[hub]'"
        ) from None
    tried = (file,) if file else HUB_FILES
    failure: BaseException | None = None
    for candidate in tried:
        try:
            path = huggingface_hub.hf_hub_download(f"{owner}/{repository}", candidate)
            for shard in sorted(set(shards(path).values())) if path.endswith(INDEX) else ():
                huggingface_hub.hf_hub_download(f"{owner}/{repository}", shard)
            return path
        except (errors.EntryNotFoundError, errors.LocalEntryNotFoundError) as error:
            failure = failure or error
        except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
            failure = error
            break
    raise UserError(f"weights {name}: not found ({first_line(failure)})")


def write_tensors(path: str, tensors: Tensors, *, reduction: str = "") -> None:
    """Writes a `.pth`, `.safetensors` or `.npz` file; a file of that name is replaced whole.

    A `.safetensors` file says which `reduction` it was made for, see `stored_reduction`.

    Raises:
      UserError: the name has none of these suffixes, or the file cannot be written.
    """
    writers: dict[str, Callable[[str, Tensors], None]] = {
        **dict.fromkeys(PTH, write_pth),
        ".safetensors": functools.partial(_write_safetensors, reduction=reduction),
        ".npz": lambda path, tensors: np.savez(path, **tensors),
    }
    suffix = pathlib.Path(path).suffix
    if suffix not in writers:
        raise UserError(f"output {path}: the name must end in one of {', '.join(writers)}")
    with whole_or_nothing(path) as temporary:
        writers[suffix](temporary, tensors)


def _write_safetensors(path: str, tensors: Tensors, *, reduction: str) -> None:
    from safetensors.numpy import save_file

    # Its readers take the address for the tensor: no two may share memory, none be a view.
    own = {name: np.array(value, order="C") for name, value in tensors.items()}
    save_file(own, path, metadata={"reduction": reduction} if reduction else None)


@contextlib.contextmanager
def whole_or_nothing(path: str) -> Iterator[str]:
    """A temporary name beside `path`, which becomes `path` if the block succeeds.

    Raises:
      UserError: the folder cannot be written to.
    """
    target = expanded(path, "output").absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UserError(f"output {path}: {error.strerror or error}") from None
    temporary = folder / target.name
    try:
        yield str(temporary)
        if temporary.is_file():  # some writers let nobody else read it
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
        if target.is_dir():
            target.rename(folder / "old")
        temporary.replace(target)
    except OSError as error:
        raise UserError(f"output {path}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find_folder(path: str | os.PathLike) -> epath.Path | None:
    """The folder, here or in an object store, that `path` names; None for a file or nothing.

    Raises:
      UserError: it cannot be looked at, for want of a right or of the object store's client.
    """
    if is_weight_file(str(path)):
        return None
    try:
        folder = config_file.locate(path)
        return folder if folder.is_dir() else None
    except Exception as error:  # the clients of object stores raise many kinds
        raise UserError(f"weights {path} cannot be read ({first_line(error)})") from None
