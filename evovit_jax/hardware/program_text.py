"""A compiled program's own text (HLO): its computations, what each calls how often, array sizes.

Tested in tests/plan/collectives_test.py and tests/hardware/compiler_estimates_test.py.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence

ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^}]*\})?")

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_BODY = re.compile(r"\bbody=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_COUNTED = re.compile(r"ROOT [^\n]* compare\([^\n]*?%?([\w.\-]+)\), direction=LT")
_CONSTANT = r"%?{}\b = s32\[\][^ ]* constant\((\d+)\)"


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


def calls(line: str, computations: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, int]]:
    """The computations that an operation of a program calls, each with how often.

    A loop whose end is only known while it runs counts as one turn.
    """
    body = _BODY.search(line)
    if body:
        yield body[1], _turns(line, computations)
    for callee in _CALLED.findall(line):
        yield callee, 1
    for group in _BRANCHES.findall(line):
        for callee in group.split(","):
            yield callee.strip().lstrip("%"), 1


def _turns(line: str, computations: Mapping[str, Sequence[str]]) -> int:
    """How often a loop turns: as its line says, or else up to where its counter ends.

    A TPU's compiler says nothing in the line. JAX's loops over chunks and micro-batches count from
    0 in ones while that is less than a constant of the loop's condition.
    """
    trips, condition = _TRIPS.search(line), _CONDITION.search(line)
    if trips or not condition:
        return int(trips[1]) if trips else 1
    lines = "\n".join(computations.get(condition[1], ()))
    end = _COUNTED.search(lines)
    constant = end and re.search(_CONSTANT.format(re.escape(end[1])), lines)
    return int(constant[1]) if constant else 1


def array_bytes(dtype: str, dims: str) -> int:
    """Bytes of an array such as ("bf16", "8,197,384"); a predicate takes one."""
    bits = 8 if dtype == "pred" else int(re.sub(r"^\D+", "", dtype).split("e")[0] or 8)
    return math.prod(int(dim) for dim in dims.split(",") if dim) * bits // 8
