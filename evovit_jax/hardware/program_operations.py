"""The operations that a compiled program runs, read from its optimised HLO text, for any device.

Each is known by what it makes and takes, how often it runs, and the part of the network that it
belongs to. Tested in tests/hardware/compiler_estimates_test.py and gpu_compiler_test.py.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from evovit_jax.hardware import program_text

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
# What a GPU's compiler puts before the name of a fusion.
_KIND_OF_FUSION = re.compile(r"^(?:loop|input|wrapped)_")
_MOVING = ("copy", "transpose")

_OPERATION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(([^)]*)\)(.*)$")
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_NUMBERS = re.compile(r"(\w+)=(\d+)")
_ROW = re.compile(r"^(\d+) (.*)$")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a compiled program.

    Attributes:
      name: in the program, without its number.
      kind: HLO's word for it, such as "fusion".
      made: the types of what it makes, as HLO writes them.
      taken: likewise of what it takes.
      rest: the rest of its line.
      part: which of `PARTS` it belongs to.
      times: how often it runs.
    """

    name: str
    kind: str
    made: str
    taken: tuple[str, ...]
    rest: str
    part: str
    times: int

    def bytes(self, in_memory: Callable[[str], bool] = lambda layout: True) -> int:
        """Bytes of the arrays that it makes and takes, those whose layout is `in_memory`."""
        arrays = program_text.ARRAY.findall(" ".join((self.made, *self.taken)))
        return sum(
            program_text.array_bytes(dtype, dims)
            for dtype, dims, layout in arrays
            if in_memory(layout)
        )

    def elements(self) -> int:
        """Of all arrays that it makes."""
        arrays = program_text.ARRAY.findall(self.made)
        return sum(math.prod(int(dim) for dim in dims.split(",") if dim) for _, dims, _ in arrays)


def read(hlo: str, works: Callable[[str], bool]) -> Iterator[Operation]:
    """The operations that a compiled program runs, those in loops with how often they turn.

    Args:
      hlo: its text.
      works: whether a call of what is not XLA's takes time, by the rest of its line.
    """
    computations, entry = program_text.computations(hlo)
    part_of = _parts_of_frames(hlo)

    def walk(name: str, times: int) -> Iterator[Operation]:
        lines = [match for match in map(_OPERATION.match, computations[name]) if match]
        types = {match[1]: match[2] for match in lines}
        for match in lines:
            if match[3] in ("while", "call"):
                for callee, turns in program_text.calls(match[5], computations):
                    yield from walk(callee, times * turns)
            elif match[3] in _WORK or (match[3] == "custom-call" and works(match[5])):
                yield _operation(match, types, part_of, times)

    yield from walk(entry, 1)


def _operation(
    match: re.Match, types: Mapping[str, str], part_of: Mapping[int, str], times: int
) -> Operation:
    own_name, made, kind, operands, rest = match.groups()
    name = re.sub(r"[.\d]+$", "", own_name)
    frame = _FRAME.search(rest)
    part = part_of.get(int(frame[1]), "rest") if frame else "rest"
    if kind in _MOVING or _KIND_OF_FUSION.sub("", name).startswith(_MOVING):
        part = "layout copies"
    taken = tuple(types.get(operand.strip().lstrip("%"), "") for operand in operands.split(","))
    return Operation(name, kind, made, taken, rest, part, times)


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
