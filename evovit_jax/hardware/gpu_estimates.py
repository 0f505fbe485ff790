"""What a program for an NVIDIA GPU runs and moves, read from the optimised HLO text.

The compiler gives no times. An operation reads what it takes and writes what it makes once, so that
the bytes of a program are the sums of both: too many where a small part of an array is read, or
where the second cache still has it. Tested in tests/hardware/gpu_compiler_test.py.
"""

import collections
import dataclasses

from evovit_jax.hardware import program_operations

_FUSED_ATTENTION = 'custom_call_target="__cudnn$fmha'


@dataclasses.dataclass(frozen=True)
class Sums:
    """The sums of a program.

    Attributes:
      moved: bytes that its operations read and write.
      parts: likewise by part, the most first.
      kernels: how many operations run, cuDNN's and cuBLAS's among them.
      fused_attention: how many of these are whole attentions.
    """

    moved: int
    parts: dict[str, int]
    kernels: int
    fused_attention: int


def sums(hlo: str) -> Sums:
    """The sums over a compiled program's text."""
    parts = collections.Counter()
    kernels = fused = 0
    for operation in program_operations.read(hlo, lambda rest: True):
        parts[operation.part] += operation.times * operation.bytes()
        kernels += operation.times
        fused += operation.times * (_FUSED_ATTENTION in operation.rest)
    return Sums(sum(parts.values()), dict(parts.most_common()), kernels, fused)
