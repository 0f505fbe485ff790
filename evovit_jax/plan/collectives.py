"""What a compiled program communicates, read from its HLO text.

A collective inside a loop (gradient accumulation is one) counts as often as the loop turns.
"""

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Mapping

from evovit_jax.hardware import program_text

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COLLECTIVE = re.compile(rf"= (\(?.*?) ({'|'.join(KINDS)})(-start)?\(")
_GROUPS = (
    re.compile(r"replica_groups=\[\d+,(\d+)\]"),  # [groups, members]
    re.compile(r"replica_groups=\{\{([\d,]+)\}"),  # the members of the first group
)
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}")
_AXIS = re.compile(r"'(\w+)'=(\d+)")
_USED_AXIS = re.compile(r"'(\w+)'(?::\(\d+\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of a kind in one run of a program, on one device.

    Attributes:
      count: how many there are.
      bytes: of the arrays that they make whole: what an all-gather returns, an all-reduce adds up,
        a reduce-scatter adds up before it is split.
      sent_bytes: what a device sends when the n members of a group pass it round a ring:
        (n - 1) / n of the bytes, an all-reduce twice that.
      bytes_by_dtype: `bytes` by what the numbers are, "bf16", "f32".
    """

    count: int
    bytes: int
    sent_bytes: int
    bytes_by_dtype: Mapping[str, int]


def read(hlo: str, devices: int) -> dict[str, Collective]:
    """The collectives of a compiled program by kind.

    Args:
      hlo: `jax.stages.Compiled.as_text()`.
      devices: how many the program runs on.
    """
    computations, entry = program_text.computations(hlo)

    @functools.cache
    def total(name: str) -> Counter:
        sums = Counter()
        for line in computations.get(name, ()):
            _count_collective(line, devices, sums)
            for callee, times in program_text.calls(line, computations):
                for key, value in total(callee).items():
                    sums[key] += times * value
        return sums

    sums = total(entry)
    return {kind: _collective(kind, sums) for kind in KINDS if sums[kind, "count"]}


def _collective(kind: str, sums: Counter) -> Collective:
    count, whole, sent = (int(sums[kind, field]) for field in ("count", "bytes", "sent"))
    dtypes = {key[2]: int(n) for key, n in sums.items() if key[:2] == (kind, "of dtype")}
    return Collective(count, whole, sent, dict(sorted(dtypes.items())))


def _count_collective(line: str, devices: int, into: Counter) -> None:
    found = _COLLECTIVE.search(line)
    if not found:
        return
    shapes, kind, started = found.groups()
    arrays = [array[:2] for array in program_text.ARRAY.findall(shapes)]
    if started and kind != "all-reduce":
        # An asynchronous start returns its operands, its results, and maybe scalars to wait for.
        arrays = [(dtype, dims) for dtype, dims in arrays if dims]
        arrays = arrays[len(arrays) // 2 :]
    members = _members(line, devices)
    times = members if kind == "reduce-scatter" else 1
    whole = 0
    for dtype, dims in arrays:
        size = times * program_text.array_bytes(dtype, dims)
        into[kind, "of dtype", dtype] += size
        whole += size
    share = 1 if kind == "collective-permute" else (members - 1) / members
    into[kind, "count"] += 1
    into[kind, "bytes"] += whole
    into[kind, "sent"] += whole * share * (2 if kind == "all-reduce" else 1)


def _members(line: str, devices: int) -> int:
    """Devices that take part in one group of a collective."""
    counted, listed = (pattern.search(line) for pattern in _GROUPS)
    if counted:
        return int(counted[1])
    if listed:
        return len(listed[1].split(","))
    mesh = _MESH_GROUPS.search(line)
    if mesh:
        sizes = dict(_AXIS.findall(mesh[1]))
        return math.prod(int(part or sizes[axis]) for axis, part in _USED_AXIS.findall(mesh[2]))
    return devices
