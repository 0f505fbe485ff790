"""The TPU's own compiler, for slices that are not here.

libtpu comes from the package index (extra `tpu-compiler`) and compiles ahead of time for any kind
of TPU on any x86 machine. One process at a time may use it.
"""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import importlib.util
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator

import jax

from evovit_jax.errors import UserError

LOCK = f"evovit_jax_libtpu_{os.getuid()}.lock"
_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")


@dataclasses.dataclass(frozen=True)
class Generation:
    """A kind of TPU, as its compiler knows it.

    Attributes:
      operations: what all of a device's matrix units do in a cycle: their 128x128 or 256x256
        multipliers, an addition each.
      clock: cycles a second.
      links: bytes a second that a chip sends to its neighbours, over all links together, from
        cloud.google.com/tpu/docs.
      sizes: slices that libtpu knows by name, the smallest first.
    """

    operations: int
    clock: float
    links: float
    sizes: tuple[str, ...]


GENERATIONS = {
    "v4": Generation(131_072, 1.05e9, 300e9, _CUBES),  # a core, half of a chip
    "v5e": Generation(131_072, 1.503e9, 200e9, _FLAT),
    "v5p": Generation(262_144, 1.751e9, 600e9, _CUBES),
    "v6e": Generation(524_288, 1.751e9, 448e9, _FLAT),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: a generation's name, and chips along each dimension as in "8x8"."""

    generation: str
    size: str

    def __str__(self) -> str:
        """As `parse` takes it."""
        return f"{self.generation}:{self.size}"

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(map(int, self.size.split("x")))

    @property
    def kind(self) -> Generation:
        """What its chips are."""
        return GENERATIONS[self.generation]

    def sizes(self) -> list["Topology"]:
        """All slices of this generation, the smallest first."""
        return [Topology(self.generation, size) for size in self.kind.sizes]


def parse(text: str, flag: str = "--topology") -> Topology:
    """The slice of `text`, "v5e:8x8"; of a generation alone the smallest.

    Raises:
      UserError: there is none of that name.
    """
    name, _, size = text.partition(":")
    if name not in GENERATIONS:
        raise UserError(f"{flag}={text} is unknown; there are {', '.join(GENERATIONS)}")
    sizes = GENERATIONS[name].sizes
    if size and size not in sizes:
        raise UserError(f"{flag}={text}: slices of {name} are {', '.join(sizes)}")
    return Topology(name, size or sizes[0])


def check_installed(flag: str) -> None:
    """Refuses `flag` where libtpu is not installed.

    Raises:
      UserError: it is not.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"{flag} needs the TPU's compiler: pip install 'evovit_jax[tpu-compiler]' (690 MB)"
        )


def version() -> str:
    """The compiler that the estimates are of, with the versions of all that has a part in them."""
    libtpu = importlib.metadata.version("libtpu")
    return f"libtpu {libtpu}, jax {jax.__version__}"


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Holds libtpu for this process; waits, and says so in a line, while another one has it."""
    with open(pathlib.Path(tempfile.gettempdir()) / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another process is compiling with libtpu; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def devices(topology: Topology) -> list[jax.Device]:
    """The devices of a slice, as far as compiling goes.

    Raises:
      UserError: libtpu does not start.
    """
    jax.config.update("jax_platforms", "cpu")  # nothing runs, and no TPU need be looked for
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=str(topology))
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"libtpu does not start for {topology}, perhaps another process uses it: {reason}"
        ) from error
    return list(found.devices)
