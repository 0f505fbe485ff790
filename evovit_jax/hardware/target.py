"""Accelerators that are not here, as far as compiling for them goes.

A kind of them is a file: `tpu_compiler.py`, `gpu_compiler.py`. `targets.py` knows them by name.
Tested in tests/hardware/targets_test.py.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import jax


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a program should take on one device; never a measurement.

    Attributes:
      ms: milliseconds of a run, the least and the most.
      unknown: how often operations run that are not in it, by name.
      fields: what else a row of a benchmark has.
    """

    ms: tuple[float, float]
    unknown: dict[str, int]
    fields: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Target(abc.ABC):
    """Devices of one kind, joined: a TPU slice, hosts of GPUs.

    Attributes:
      generation: the kind's name, "v5e".
      size: devices along each dimension, "8x8".
    """

    generation: str
    size: str

    # What JAX calls such devices' platform.
    platform: ClassVar[str]
    # What the compiler is given beyond its defaults.
    options: ClassVar[Mapping[str, Any]] = {}
    # What it is given besides, in a second try at a program that it gives up.
    second_try: ClassVar[Mapping[str, Any]] = {}
    # Columns of a table of benchmarks that only such devices have: of a row's field, its title.
    columns: ClassVar[Mapping[str, str]]
    # The field of a row that says what its parts cost.
    parts: ClassVar[str]
    # How a table of estimates begins, before the compiler's name.
    what: ClassVar[str]

    def __str__(self) -> str:
        """As `targets.parse` takes it."""
        return f"{self.generation}:{self.size}"

    @property
    def chips(self) -> int:
        """How many devices there are."""
        return math.prod(map(int, self.size.split("x")))

    def compile(self, lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, dict[str, Any]]:
        """The program, and the options that a second try at it took, {} where the first made it.

        Raises:
          JaxRuntimeError: the compiler gives it up; why it did so first.
        """
        try:
            return lowered.compile(compiler_options=dict(self.options)), {}
        except jax.errors.JaxRuntimeError as first:
            if not self.second_try:
                raise
            more = dict(self.second_try)
            try:
                return lowered.compile(compiler_options={**self.options, **more}), more
            except jax.errors.JaxRuntimeError:
                raise first from None

    @property
    @abc.abstractmethod
    def links(self) -> float:
        """Bytes a second that a device sends to others."""

    @abc.abstractmethod
    def sizes(self) -> list["Target"]:
        """All that there are of this generation, the smallest first."""

    @abc.abstractmethod
    def check_installed(self, flag: str) -> None:
        """Refuses `flag` where the compiler is not installed.

        Raises:
          UserError: it is not.
        """

    @abc.abstractmethod
    def version(self) -> str:
        """The compiler, with the versions of all that has a part in it."""

    @abc.abstractmethod
    def alone(self) -> AbstractContextManager[None]:
        """Holds the compiler for this process, where only one may use it."""

    @abc.abstractmethod
    def devices(self) -> list[jax.Device]:
        """The devices, as far as compiling goes.

        Raises:
          UserError: the compiler does not start.
        """

    @abc.abstractmethod
    def estimate(self, hlo: str, operations: float, dtype: str) -> Estimate:
        """What a program takes on one of the devices.

        Args:
          hlo: the compiled program's text.
          operations: a device's multiplications and additions in matrix products.
          dtype: of these.
        """
