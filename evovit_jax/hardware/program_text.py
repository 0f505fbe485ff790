"""A compiled program's own text (HLO): its computations, what each calls how often, array sizes.

Tested in tests/plan/collectives_test.py and tests/hardware/compiler_estimates_test.py.
"""

import math
import re
from collections.abc import Iterator

ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^}]*\})?")

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_BODY = re.compile(r"\bbody=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by name, and the name of the one that the program enters."""
    lines: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name = header[2]
            entry = name if header[1] else entry
            lines[name] = []
        elif name:
            lines[name].append(line)
    return lines, entry


def calls(line: str) -> Iterator[tuple[str, int]]:
    """The computations that an operation calls, each with how often; a loop turns at least once."""
    body, trips = _BODY.search(line), _TRIPS.search(line)
    if body:
        yield body[1], int(trips[1]) if trips else 1
    for callee in _CALLED.findall(line):
        yield callee, 1
    for group in _BRANCHES.findall(line):
        for callee in group.split(","):
            yield callee.strip().lstrip("%"), 1


def array_bytes(dtype: str, dims: str) -> int:
    """Bytes of an array such as ("bf16", "8,197,384"); a predicate takes one."""
    bits = 8 if dtype == "pred" else int(re.sub(r"^\D+", "", dtype).split("e")[0] or 8)
    return math.prod(int(dim) for dim in dims.split(",") if dim) * bits // 8
