"""What all processes of a run decide alike: before a collective, no process decides alone.

Values travel as JSON, through JAX's own collectives. Every process calls these functions at the
same point of the program; a process that is alone gets its own value back.
"""

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from evovit_jax.errors import UserError


def from_first(value: Any) -> Any:
    """Process 0's value, on every process; the others' are not looked at."""
    data = _encode(value)
    if jax.process_count() == 1:
        return _decode(data)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    return _decode(multihost_utils.broadcast_one_to_all(_padded(data, length)))


def gather(value: Any) -> list[Any]:
    """The values of all processes, by process index."""
    data = _encode(value)
    if jax.process_count() == 1:
        return [_decode(data)]
    longest = int(multihost_utils.process_allgather(np.int32(data.size)).max())
    return [_decode(row) for row in multihost_utils.process_allgather(_padded(data, longest))]


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """A `UserError` that the body raises on one process is raised on all, with who it was.

    The body must hold no collective: a process that fails in it would leave the others waiting.
    """
    failure = None
    try:
        yield
    except UserError as error:
        failure = error
    messages = gather(None if failure is None else str(failure))
    if failure is not None:
        raise failure
    for index, message in enumerate(messages):
        if message is not None:
            raise UserError(f"process {index} of {len(messages)}: {message}")


def refuse_differing(values: dict[str, Any]) -> None:
    """Refuses a run whose processes were not started alike.

    Args:
      values: JSON values by the name that the user knows them by.

    Raises:
      UserError: naming the first process and value that differ from process 0's.
    """
    first = from_first(values)
    with all_or_none():
        for name in {**first, **values}:
            if first.get(name) != _decode(_encode(values.get(name))):
                raise UserError(
                    f"the processes of this run differ: {name} is {values.get(name)!r} on host "
                    f"{socket.gethostname()} and {first.get(name)!r} in process 0; "
                    "start all of them alike"
                )


def _encode(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _padded(data: np.ndarray, length: int) -> np.ndarray:
    """As JSON takes it: with spaces behind; what is longer is another process's and not read."""
    return np.pad(data[:length], (0, length - data[:length].size), constant_values=ord(" "))


def _decode(data: np.ndarray) -> Any:
    return json.loads(np.asarray(data).astype(np.uint8).tobytes())
