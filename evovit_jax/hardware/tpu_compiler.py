"""The TPU's own compiler, for slices that are not here.

libtpu comes from the package index (extra `tpu-compiler`) and compiles ahead of time for any kind
of TPU on any x86 machine. One process at a time may use it.
"""

import contextlib
import dataclasses
import fcntl
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import tempfile
from collections.abc import Iterator
from types import MappingProxyType

import jax

from evovit_jax.errors import UserError
from evovit_jax.hardware import compiler_estimates
from evovit_jax.hardware.target import Estimate, Target

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
class Slice(Target):
    """TPU chips that are joined; `size` is chips along each dimension, as in "8x8"."""

    platform = "tpu"
    columns = MappingProxyType(
        {
            "estimated_mcycles": "estimated M cycles",
            "estimated_mcycles_low": "at least",
        }
    )
    parts = "parts_mcycles"
    what = "of the compiler"

    @property
    def kind(self) -> Generation:
        """What its chips are."""
        return GENERATIONS[self.generation]

    @property
    def links(self) -> float:
        """Bytes a second that a chip sends to its neighbours."""
        return self.kind.links

    def sizes(self) -> list[Target]:
        """All slices of this generation, the smallest first."""
        return [Slice(self.generation, size) for size in self.kind.sizes]

    def check_installed(self, flag: str) -> None:
        """Refuses `flag` where libtpu is not installed.

        Raises:
          UserError: it is not.
        """
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(
                f"{flag} needs the TPU's compiler: pip install 'evovit_jax[tpu-compiler]' (690 MB)"
            )

    def version(self) -> str:
        """The compiler that the estimates are of, with all that has a part in them."""
        libtpu = importlib.metadata.version("libtpu")
        return f"libtpu {libtpu}, jax {jax.__version__}"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Holds libtpu for this process; waits, and says so in a line, while another one has it.

        Like libtpu itself it is not let go before the process ends.
        """
        _hold(pathlib.Path(tempfile.gettempdir()) / LOCK)
        yield

    def devices(self) -> list[jax.Device]:
        """The devices of the slice, as far as compiling goes.

        Raises:
          UserError: libtpu does not start.
        """
        jax.config.update("jax_platforms", "cpu")  # nothing runs, and no TPU need be looked for
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        from jax.experimental import topologies

        try:
            found = topologies.get_topology_desc(platform="tpu", topology_name=str(self))
        except (RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"libtpu does not start for {self}, perhaps another process uses it: {reason}"
            ) from error
        return list(found.devices)

    def estimate(self, hlo: str, operations: float, dtype: str) -> Estimate:
        """By the compiler's own estimates of its operations, which know the dtype."""
        del dtype
        sums = compiler_estimates.estimate(hlo)
        low, high = (1e3 * cycles / self.kind.clock for cycles in (sums.low, sums.cycles))
        fields = {
            "estimated_mcycles": millions(sums.cycles),
            "estimated_mcycles_low": millions(sums.low),
            "estimated_share_of_peak": round(
                operations / max(1, sums.cycles) / self.kind.operations, 3
            ),
            "kernels": sums.kernels,
            "largest_copy_mcycles": millions(sums.largest_copy),
            "parts_mcycles": {part: millions(n) for part, n in sums.parts.items()},
        }
        return Estimate((low, high), sums.unknown, fields)


def millions(cycles: float) -> float:
    """Cycles in millions, to two places."""
    return round(cycles / 1e6, 2)


@functools.cache
def _hold(path: pathlib.Path) -> int:
    """The descriptor of the locked file, open as long as the process lives."""
    lock = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another process is compiling with libtpu; waiting for it", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock
