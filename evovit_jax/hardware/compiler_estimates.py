"""What a TPU's compiler expects of its own program, read from the optimised HLO text.

The compiler writes `estimated_cycles` beside most operations. Products and what is fused with them
are estimated within a few per cent of the final schedule. Operations that wait for device memory
are estimated 2.4 times too dear against the data sheet's bandwidth, copies between layouts 4 times:
hence a low sum and a high one. Sorts, gathers, scatters and Pallas calls have no estimate.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from evovit_jax.hardware import program_text

# How many times too dear the compiler takes what waits for memory, and copies between layouts.
MEMORY_BOUND, COPY = 2.4, 4.0
# Bytes of device memory a cycle that the estimates of memory-bound operations come to.
BYTES_PER_CYCLE = 222

PARTS = ("attention", "MLP", "selection", "norms", "patches", "layout copies", "rest")
# The part that a function of the package's models belongs to, by the name that it begins with.
_FUNCTIONS = {
    "Attention.": "attention",
    "SubsampleAttention.": "attention",
    "Mlp.": "MLP",
    "gelu": "MLP",
    "LayerNorm.": "norms",
    "BatchNorm.": "norms",
    "PatchEmbed.": "patches",
    "Stem.": "patches",
}
# Operations that take time; others name, group or start what is counted elsewhere.
_WORK = {
    *("fusion", "dot", "convolution", "copy", "transpose", "reshape", "slice", "pad", "reduce"),
    *("sort", "gather", "scatter", "concatenate", "broadcast", "convert", "reduce-window"),
    *("dynamic-slice", "dynamic-update-slice", "select-and-scatter", "add", "multiply"),
}
_PALLAS = "tpu_custom_call"
# Operations that take long however little they work on, and elements that one register holds: fewer
# are added or moved in no time that counts, and have no estimate (a key's random bits).
_INDEXING, REGISTER = ("sort", "gather", "scatter", "fusion", "custom-call"), 8 * 128

_OPERATION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(([^)]*)\)(.*)$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_NUMBERS = re.compile(r"(\w+)=(\d+)")
_ROW = re.compile(r"^(\d+) (.*)$")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a compiled program.

    Attributes:
      name: in the program, without its number.
      cycles: of one run of the program, as the compiler estimates them; None where it does not.
      low: the same, less what is known to be estimated too dear.
      part: which of `PARTS` it belongs to.
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


def read(hlo: str) -> Iterator[Operation]:
    """The operations that a compiled program runs, those in loops with how often they turn."""
    computations, entry = program_text.computations(hlo)
    part_of = _parts_of_frames(hlo)

    def walk(name: str, times: int) -> Iterator[Operation]:
        lines = [match for match in map(_OPERATION.match, computations[name]) if match]
        types = {match[1]: match[2] for match in lines}
        for match in lines:
            if match[3] in ("while", "call"):
                for callee, turns in program_text.calls(match[5]):
                    yield from walk(callee, times * turns)
            elif match[3] in _WORK or f'"{_PALLAS}"' in match[5]:
                yield _operation(match, types, part_of, times)

    yield from walk(entry, 1)


def _operation(
    match: re.Match, types: Mapping[str, str], part_of: Mapping[int, str], times: int
) -> Operation:
    own_name, made, kind, operands, rest = match.groups()
    name = re.sub(r"[.\d]+$", "", own_name)
    frame = _FRAME.search(rest)
    part = part_of.get(int(frame[1]), "rest") if frame else "rest"
    if kind in ("copy", "transpose") or name.startswith(("copy", "transpose")):
        part = "layout copies"
    found = _CYCLES.search(rest)
    if not found and kind not in _INDEXING and _elements(made) <= REGISTER:
        return Operation(name, 0, 0.0, part, times)
    if not found:
        return Operation(_PALLAS if _PALLAS in rest else name, None, 0.0, part, times)
    cycles = int(found[1])
    taken = [types.get(operand.strip().lstrip("%"), "") for operand in operands.split(",")]
    waiting = sum(map(_bytes_in_memory, [made, *taken])) / BYTES_PER_CYCLE
    too_dear = COPY if part == "layout copies" else MEMORY_BOUND
    low = cycles - min(cycles, waiting) * (1 - 1 / too_dear)
    return Operation(name, cycles, low, part, times)


def _elements(type_text: str) -> int:
    """Of all arrays of a type."""
    arrays = program_text.ARRAY.findall(type_text)
    return sum(math.prod(int(dim) for dim in dims.split(",") if dim) for _, dims, _ in arrays)


def _bytes_in_memory(type_text: str) -> int:
    """Bytes of the arrays of a type that lie in device memory, not in the fast one (`S(1)`)."""
    arrays = program_text.ARRAY.findall(type_text)
    return sum(
        program_text.array_bytes(dtype, dims)
        for dtype, dims, layout in arrays
        if "S(1)" not in layout
    )


def _table(hlo: str, title: str) -> dict[int, str]:
    """One of the numbered tables at the head of a program's text."""
    rows: dict[int, str] = {}
    inside = False
    for line in hlo.splitlines():
        row = _ROW.match(line)
        if line == title:
            inside = True
        elif inside and row:
            rows[int(row[1])] = row[2]
        elif inside:
            break
    return rows


def _parts_of_frames(hlo: str) -> dict[int, str]:
    """The part of the network that each stack frame belongs to: its innermost known function's."""
    files, functions = (_table(hlo, title) for title in ("FileNames", "FunctionNames"))
    locations = {i: _numbers(row) for i, row in _table(hlo, "FileLocations").items()}
    frames = {i: _numbers(row) for i, row in _table(hlo, "StackFrames").items()}

    def chain(number: int) -> Sequence[tuple[str, str]]:
        path = []
        while number in frames:
            place = locations[frames[number]["file_location_id"]]
            names = files[place["file_name_id"]], functions[place["function_name_id"]]
            path.append(tuple(name.strip('"') for name in names))
            number = frames[number]["parent_frame_id"] - 1  # printed plus one
        return path

    return {number: _part(chain(number)) for number in frames}


def _numbers(row: str) -> dict[str, int]:
    return {name: int(number) for name, number in _NUMBERS.findall(row)}


def _part(path: Sequence[tuple[str, str]]) -> str:
    for file, function in path:
        if "/evovit_jax/reduction/" in file:
            return "selection"
        for beginning, part in _FUNCTIONS.items():
            if "/evovit_jax/models/" in file and function.startswith(beginning):
                return part
        if function.endswith(".embed"):
            return "patches"
    return "rest"
