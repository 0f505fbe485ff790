"""The compiler's estimates are summed by what they are for; what has none is named."""

import pathlib

import pytest

from evovit_jax.hardware import compiler_estimates
from evovit_jax.hardware.program_operations import PARTS

# As libtpu prints a program, cut down: the tables of stack frames, a fusion's inside, a loop of
# four turns, and an entry with an operation of every sort.
HLO = (pathlib.Path(__file__).parent / "golden" / "tpu_program.txt").read_text()


def test_cycles_are_summed_by_the_part_of_the_network():
    sums = compiler_estimates.estimate(HLO)
    assert sums.cycles == 400 + 50 + 4 * 100 + 200 + 30 + 20
    assert sums.parts == {
        "layout copies": 400,
        "MLP": 400,  # four turns of the loop
        "attention": 200,
        "patches": 50,
        "selection": 30,
        "rest": 20,
    }
    assert sums.largest_copy == 400
    assert set(sums.parts) <= set(PARTS)


def test_what_has_no_estimate_is_named_and_counts_as_a_kernel():
    sums = compiler_estimates.estimate(HLO)
    assert sums.unknown == {"sort": 1, "tpu_custom_call": 1}
    assert sums.kernels == 6 - 1 + 4 + 2


def test_what_waits_for_memory_is_cheaper_at_the_least():
    """The copy reads and writes 14,208 bytes each, the convolution reads as many: 64 cycles."""
    operations = {o.name + str(o.cycles): o for o in compiler_estimates.read(HLO)}
    copy, convolution = operations["copy400"], operations["fusion50"]
    assert copy.low == pytest.approx(400 - 2 * 64 * (1 - 1 / compiler_estimates.COPY))
    assert convolution.low == pytest.approx(50 / compiler_estimates.MEMORY_BOUND)
    assert operations["fusion200"].low == 200  # all in the chip's fast memory


def test_what_a_register_holds_needs_no_estimate():
    lines = (
        "%a = u32[2,1]{0,1:T(1,128)} add(%p, %p)",
        "%b = f32[8,256]{1,0} add(%q, %q)",
        "%c = s32[4]{0} sort(%r)",
    )
    program = "ENTRY %main (p: u32[2,1]) -> f32[8] {\n  " + "\n  ".join(lines) + "\n}\n"
    sums = compiler_estimates.estimate(program)
    assert sums.unknown == {"b": 1, "c": 1}
    assert sums.kernels == 3
