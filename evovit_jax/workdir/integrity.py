"""Whether a checkpoint is what was saved: shapes, checksums, and whose fault it is if it is not."""

import contextlib
import json
import logging
import pathlib
import sys
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from evovit_jax.errors import UserError, first_line
from evovit_jax.workdir.remote import is_remote


class Damaged(Exception):
    """What lies in a checkpoint is not what was saved."""


class Unreadable(Exception):
    """A checkpoint cannot be read now; it may be whole."""


def cause(error: Exception, folder: epath.Path) -> Damaged | Unreadable:
    """What a checkpoint that could not be restored suffers from.

    Libraries wrap the system's errors in their own, so the system is asked again: where every file
    can be read, it is their content that is wrong.
    """
    reason = first_line(error, 200)
    if isinstance(error, Damaged):
        return error
    if isinstance(error, MemoryError | jax.errors.JaxRuntimeError):  # no room for what was read
        return Unreadable(reason)
    try:
        _read_all(folder)
    except OSError as failure:
        return Unreadable(first_line(failure, 200))
    return Damaged(reason)


def _read_all(folder: epath.Path) -> None:
    """Reads every file below a folder.

    Raises:
      OSError: one cannot be read, though it is there.
    """
    for path in folder.iterdir():
        if path.is_dir():
            _read_all(path)
        else:
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def check_files(folder: epath.Path) -> None:
    """Checks, before anything below a folder is opened, that no opening waits for ever.

    Raises:
      Damaged: something there is neither a regular file nor a folder.
    """
    if is_remote(folder):
        return
    for path in pathlib.Path(folder).rglob("*"):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise Damaged(f"{path.relative_to(folder)} is no regular file")


def check_record(run: Any) -> None:
    """Checks the JSON that is saved beside the arrays, before it is used.

    Args:
      run: {"data", "shapes", "checksums", "record"}; old checkpoints have no "record".

    Raises:
      Damaged: it is no such thing, or was changed.
    """
    if not isinstance(run, dict) or "data" not in run:
        raise Damaged("the record beside the arrays is none")
    for kind, values in (("shapes", str), ("checksums", int)):
        given = run.get(kind)
        if not isinstance(given, dict) or not all(isinstance(v, values) for v in given.values()):
            raise Damaged(f"the record beside the arrays has no {kind}")
    if run.get("record", checksum(run)) != checksum(run):
        raise Damaged("the checksum of the record beside the arrays is wrong")


def checksum(run: Mapping[str, Any]) -> int:
    """Of the JSON that is saved beside the arrays, the data iterator's state among it."""
    kept = {name: value for name, value in run.items() if name != "record"}
    return zlib.crc32(json.dumps(kept, sort_keys=True).encode())


def check_arrays(tree: Mapping[str, Any], saved: Mapping[str, int], step: int) -> None:
    """Compares what was read of a state, all or part of it, with what was saved.

    Args:
      tree: the arrays, of all processes together.
      saved: their checksums.
      step: the checkpoint's name.

    Raises:
      Damaged: an array differs, or a checkpoint of another step has this name.
    """
    for name, value in checksums(tree).items():
        if saved.get(name) != value:
            raise Damaged(f"the checksum of {name} is wrong")
    if "step" in tree and int(tree["step"]) != step:
        raise Damaged(f"it holds step {int(tree['step'])}")


def shapes_of(tree: Any) -> dict[str, str]:
    """Shape and dtype of every array of a tree by its path, such as "params/cls_token"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check_shapes(saved: dict[str, str], wanted: dict[str, str], what: str) -> None:
    """Refuses a checkpoint that does not fit the run.

    Raises:
      UserError: naming what differs; parameters first, since the rest follows from them.
    """
    differing = []
    for name in [*wanted, *(name for name in saved if name not in wanted)]:
        if saved.get(name) != wanted.get(name):
            is_shape = name in saved and name in wanted
            text = (
                f"{saved[name]} there, {wanted[name]} here"
                if is_shape
                else ("only there" if name in saved else "only here")
            )
            differing.append((not name.startswith("params/"), f"{name} ({text})"))
    if not differing:
        return
    differing.sort(key=lambda item: item[0])
    of_params = [text.removeprefix("params/") for late, text in differing if not late]
    shown = of_params or [text for _, text in differing]
    more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
    kind = "another architecture" if of_params else "another optimiser, average or loss"
    raise UserError(
        f"{what} is of {kind}: {'; '.join(shown[:8])}{more}. "
        "Use its config, or another work directory"
    )


def checksums(tree: Any) -> dict[str, int]:
    """For every array the sum of its bits as 32-bit words, modulo 2^32, by its path.

    Addition does not depend on the order, so the sum is the same however an array is sharded, and
    whether it is on devices or, as NumPy's, on the host.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = [leaf for _, leaf in leaves]
    on_host = all(isinstance(leaf, np.ndarray) for leaf in arrays)
    sums = map(_sum_on_host, arrays) if on_host else jax.device_get(_sum_bits(arrays))
    return {_name(path): int(value) for (path, _), value in zip(leaves, sums, strict=True)}


def _sum_on_host(x: np.ndarray) -> int:
    words = np.ascontiguousarray(x).reshape(-1).view(f"uint{8 * x.dtype.itemsize}")
    return int(words.sum(dtype=np.uint32))


@jax.jit
def _sum_bits(leaves: list[jax.Array]) -> list[jax.Array]:
    def one(x: jax.Array) -> jax.Array:
        if x.dtype == jnp.bool_:
            return x.sum(dtype=jnp.uint32)
        words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
        return words.astype(jnp.uint32).sum(dtype=jnp.uint32)

    return [one(leaf) for leaf in leaves]


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keeps quiet about the reads that a failed restore abandons; the restore itself raises.

    Orbax reads all arrays at once and stops at the first that fails. Python would print a traceback
    of each other one when it collects it: to be done (`gc.collect`) before the context ends.
    """
    asyncio, hook = logging.getLogger("asyncio"), sys.unraisablehook
    before = asyncio.disabled
    asyncio.disabled, sys.unraisablehook = True, lambda _: None
    try:
        yield
    finally:
        asyncio.disabled, sys.unraisablehook = before, hook
