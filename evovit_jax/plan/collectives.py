"""What a compiled program communicates, read from its HLO text.

A collective inside a loop (gradient accumulation is one) counts as often as the loop turns.
"""

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Mapping

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_COLLECTIVE = re.compile(rf"= (\(?.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_BODY = re.compile(r"\bbody=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
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
    """

    count: int
    bytes: int
    sent_bytes: int


def read(hlo: str, devices: int) -> dict[str, Collective]:
    """The collectives of a compiled program by kind.

    Args:
      hlo: `jax.stages.Compiled.as_text()`.
      devices: how many the program runs on.
    """
    own, calls, entry = _scan(hlo, devices)

    @functools.cache
    def total(name: str) -> Counter:
        found = Counter(own.get(name, {}))
        for callee, times in calls.get(name, Counter()).items():
            for key, value in total(callee).items():
                found[key] += times * value
        return found

    sums = total(entry)
    return {
        kind: Collective(*(int(sums[kind, field]) for field in ("count", "bytes", "sent")))
        for kind in KINDS
        if sums[kind, "count"]
    }


def _scan(hlo: str, devices: int) -> tuple[Mapping[str, Counter], Mapping[str, Counter], str]:
    """Each computation's own collectives, how often it calls others, and the entry's name."""
    own: dict[str, Counter] = {}
    calls: dict[str, Counter] = {}
    entry = name = ""
    for line in hlo.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            name = header[2]
            entry = name if header[1] else entry
            own[name], calls[name] = Counter(), Counter()
        elif name:
            _count_collective(line, devices, own[name])
            _count_calls(line, calls[name])
    return own, calls, entry


def _count_collective(line: str, devices: int, into: Counter) -> None:
    found = _COLLECTIVE.search(line)
    if not found:
        return
    shapes, kind, started = found.groups()
    arrays = _ARRAY.findall(shapes)
    if started and kind != "all-reduce":
        # An asynchronous start returns its operands, its results, and maybe scalars to wait for.
        arrays = [(dtype, dims) for dtype, dims in arrays if dims]
        arrays = arrays[len(arrays) // 2 :]
    members = _members(line, devices)
    whole = sum(_bytes(*array) for array in arrays)
    if kind == "reduce-scatter":
        whole *= members
    share = 1 if kind == "collective-permute" else (members - 1) / members
    into[kind, "count"] += 1
    into[kind, "bytes"] += whole
    into[kind, "sent"] += whole * share * (2 if kind == "all-reduce" else 1)


def _bytes(dtype: str, dims: str) -> int:
    """Bytes of an array such as ("bf16", "8,197,384"); a predicate takes one."""
    bits = 8 if dtype == "pred" else int(re.sub(r"^\D+", "", dtype).split("e")[0] or 8)
    return math.prod(int(dim) for dim in dims.split(",") if dim) * bits // 8


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


def _count_calls(line: str, into: Counter) -> None:
    body = _BODY.search(line)
    if body:
        trips = _TRIPS.search(line)
        into[body[1]] += int(trips[1]) if trips else 1
    for callee in _CALLED.findall(line):
        into[callee] += 1
    for group in _BRANCHES.findall(line):
        for callee in group.split(","):
            into[callee.strip().lstrip("%")] += 1
