"""What a TPU's compiler expects of its own program, read from the optimised HLO text.

The compiler writes `estimated_cycles` beside most operations. Products and what is fused with them
are estimated within a few per cent of the final schedule. Operations that wait for device memory
are estimated 2.4 times too dear against the data sheet's bandwidth, copies between layouts 4 times:
hence a low sum and a high one. Sorts, gathers, scatters and Pallas calls have no estimate.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator

from evovit_jax.hardware import program_operations
from evovit_jax.hardware.program_operations import Operation

# How many times too dear the compiler takes what waits for memory, and copies between layouts.
MEMORY_BOUND, COPY = 2.4, 4.0
# Bytes of device memory a cycle that the estimates of memory-bound operations come to.
BYTES_PER_CYCLE = 222
_PALLAS = "tpu_custom_call"
# Operations that take long however little they work on, and elements that one register holds: fewer
# are added or moved in no time that counts, and have no estimate (a key's random bits).
_INDEXING, REGISTER = ("sort", "gather", "scatter", "fusion", "custom-call"), 8 * 128
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Estimated:
    """One operation of a compiled program.

    Attributes:
      name: in the program, without its number.
      cycles: of one run of the operation, as the compiler estimates them; None where it does not.
      low: the same, less what is known to be estimated too dear.
      part: which of `program_operations.PARTS` it belongs to.
      times: how often it runs.
    """

    name: str
    cycles: int | None
    low: float
    part: str
    times: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The sums of a program.

    Attributes:
      cycles: all estimates.
      low: the same, less what is known to be estimated too dear.
      parts: cycles by part, the dearest first.
      kernels: how many operations run.
      largest_copy: cycles of the dearest copy between layouts.
      unknown: how often operations without an estimate run, by name.
    """

    cycles: int
    low: float
    parts: dict[str, int]
    kernels: int
    largest_copy: int
    unknown: dict[str, int]


def estimate(hlo: str) -> Estimate:
    """The sums over a compiled program's text."""
    operations = list(read(hlo))
    parts, unknown = collections.Counter(), collections.Counter()
    for operation in operations:
        if operation.cycles is None:
            unknown[operation.name] += operation.times
        else:
            parts[operation.part] += operation.cycles * operation.times
    copies = [o.cycles for o in operations if o.part == "layout copies" and o.cycles]
    return Estimate(
        cycles=sum(parts.values()),
        low=sum(o.low * o.times for o in operations),
        parts=dict(parts.most_common()),
        kernels=sum(o.times for o in operations),
        largest_copy=max(copies, default=0),
        unknown=dict(unknown.most_common()),
    )


def read(hlo: str) -> Iterator[Estimated]:
    """The operations that a compiled program runs, those in loops with how often they turn."""
    for operation in program_operations.read(hlo, lambda rest: f'"{_PALLAS}"' in rest):
        yield _estimated(operation)


def _estimated(operation: Operation) -> Estimated:
    name, part, times = operation.name, operation.part, operation.times
    found = _CYCLES.search(operation.rest)
    if not found and operation.kind not in _INDEXING and operation.elements() <= REGISTER:
        return Estimated(name, 0, 0.0, part, times)
    if not found:
        return Estimated(_PALLAS if _PALLAS in operation.rest else name, None, 0.0, part, times)
    cycles = int(found[1])
    waiting = operation.bytes(_in_memory) / BYTES_PER_CYCLE
    too_dear = COPY if part == "layout copies" else MEMORY_BOUND
    low = cycles - min(cycles, waiting) * (1 - 1 / too_dear)
    return Estimated(name, cycles, low, part, times)


def _in_memory(layout: str) -> bool:
    """Whether an array lies in device memory, not in the fast one."""
    return "S(1)" not in layout
