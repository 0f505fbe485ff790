"""A plan: what it holds, as a table for people, and as JSON for programs.

Tested in tests/plan/memory_test.py.
"""

import dataclasses
from typing import Any

from evovit_jax import tables
from evovit_jax.hardware import accelerators
from evovit_jax.plan import collectives

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Plan:
    """One training step on one device; all memory in bytes.

    Attributes:
      model: its name, and its reduction.
      phase: which of the run's programs was compiled.
      devices: of the mesh.
      mesh: {"data": ..., "fsdp": ...}.
      batch_size_per_device: examples a step, over all its micro-batches.
      param_bytes_per_device: parameters.
      optimizer_bytes_per_device: the optimiser's state (Adam: two moments).
      ema_bytes_per_device: the averages.
      other_bytes_per_device: batch statistics, meters, and the batch itself.
      activation_bytes_per_device: what the compiler sets aside while a step runs: activations,
        gradients, gathered parameters, workspace.
      collectives: by kind.
      compile_seconds: on this machine.
      teacher_bytes_per_device: the weights of what the network also learns from.
      padding_bytes_per_device: what arrays take beyond their elements, laid out in tiles.
      program_bytes_per_device: the program itself, which a TPU keeps beside the arrays.
      compiler: what it was compiled by, or for.
    """

    model: str
    phase: str
    devices: int
    mesh: dict[str, int]
    batch_size_per_device: int
    param_bytes_per_device: int
    optimizer_bytes_per_device: int
    ema_bytes_per_device: int
    other_bytes_per_device: int
    activation_bytes_per_device: int
    collectives: dict[str, collectives.Collective]
    compile_seconds: float
    teacher_bytes_per_device: int = 0
    padding_bytes_per_device: int = 0
    program_bytes_per_device: int = 0
    compiler: str = "virtual CPU devices"

    @property
    def total_bytes_per_device(self) -> int:
        """All of it."""
        return (
            self.param_bytes_per_device
            + self.optimizer_bytes_per_device
            + self.ema_bytes_per_device
            + self.other_bytes_per_device
            + self.activation_bytes_per_device
            + self.teacher_bytes_per_device
            + self.padding_bytes_per_device
            + self.program_bytes_per_device
        )

    def fits(self, hbm_gib: float) -> bool:
        """Whether a device with so many GiB of memory holds it."""
        return self.total_bytes_per_device <= hbm_gib * accelerators.GIB


def as_json(plan: Plan, hbm_gib: float | None) -> str:
    """One JSON object; `fits` is null where no memory was given."""
    return tables.json_line(fields(plan, hbm_gib))


def fields(plan: Plan, hbm_gib: float | None) -> dict[str, Any]:
    """What the JSON holds."""
    found = dataclasses.asdict(plan)
    found["total_bytes_per_device"] = plan.total_bytes_per_device
    found["hbm_gib"] = hbm_gib
    found["fits"] = None if hbm_gib is None else plan.fits(hbm_gib)
    return found


def as_text(plan: Plan, hbm_gib: float | None) -> str:
    """A page of text."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    lines = [
        f"{plan.model} on {plan.devices} devices ({mesh}), "
        f"{plan.batch_size_per_device} images a device and step",
        f"{plan.phase}; compiled in {plan.compile_seconds:.0f} s for {plan.compiler}",
        "",
        f"{'memory of each device':<34}{'MiB':>10}",
    ]
    rows = {
        "parameters": plan.param_bytes_per_device,
        "optimiser": plan.optimizer_bytes_per_device,
        "average (EMA)": plan.ema_bytes_per_device,
        "teacher": plan.teacher_bytes_per_device,
        "batch, statistics, meters": plan.other_bytes_per_device,
        "padding": plan.padding_bytes_per_device,
        "program": plan.program_bytes_per_device,
        "activations, gradients, workspace": plan.activation_bytes_per_device,
        "total": plan.total_bytes_per_device,
    }
    seldom = ("teacher", "padding", "program")
    lines += [
        f"{name:<34}{size / MIB:>10.1f}"
        for name, size in rows.items()
        if size or name not in seldom
    ]
    lines += ["", f"{'collectives of a step':<24}{'count':>10}{'MiB':>10}{'MiB sent':>10}"]
    lines += [
        f"{kind:<24}{found.count:>10}{found.bytes / MIB:>10.1f}{found.sent_bytes / MIB:>10.1f}"
        f"    {by_dtype(found)}"
        for kind, found in plan.collectives.items()
    ]
    if not plan.collectives:
        lines.append("none")
    return "\n".join([*lines, "", verdict(plan, hbm_gib)])


def by_dtype(found: collectives.Collective) -> str:
    """The MiB of a kind of collectives by what their numbers are: "bf16 1.5, f32 84.0"."""
    return ", ".join(f"{dtype} {size / MIB:.1f}" for dtype, size in found.bytes_by_dtype.items())


def verdict(plan: Plan, hbm_gib: float | None) -> str:
    """Whether it fits, in a line."""
    needed = plan.total_bytes_per_device / accelerators.GIB
    if hbm_gib is None:
        fitting = ", ".join(accelerators.with_memory(needed)) or "none that is known"
        return f"a device needs {needed:.2f} GiB; that have: {fitting}"
    share = f"{needed:.2f} of {hbm_gib:g} GiB, {100 * needed / hbm_gib:.0f} %"
    if plan.fits(hbm_gib):
        return f"fits: {share}"
    return (
        f"does not fit: {share}; more devices, a larger mesh.fsdp or accumulate, "
        "model.remat=full or model.dtype=bfloat16 need less"
    )
