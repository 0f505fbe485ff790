"""What a run needs of accelerators that are not here: `main --plan --topology=v5e:8x8`.

The training step is compiled by their own compiler, ahead of time: memory and collectives are those
of the program that would run. How long a step takes is an estimate, in a range
(`hardware/targets.py`), never a measurement.
"""

import dataclasses
import itertools

import jax
from ml_collections import ConfigDict

from evovit_jax.errors import UserError
from evovit_jax.hardware import accelerators, targets
from evovit_jax.hardware.target import Estimate, Target
from evovit_jax.plan import memory, topology_report
from evovit_jax.plan.report import Plan
from evovit_jax.plan.topology_report import PhaseEstimate, TopologyPlan
from evovit_jax.train.program import Program
from evovit_jax.train.utilisation import Cost


def make(config: ConfigDict, topology: Target, hbm_gib: float | None = None) -> TopologyPlan:
    """Compiles a run's phases for a slice; of more than two the first and the last.

    The phases between these, of a keep rate that falls, take as long as either at the least and at
    the most.

    Args:
      config: the run's.
      topology: the slice.
      hbm_gib: memory of a device; by default what is known of it.

    Raises:
      UserError: the config does not fit the slice, or the compiler does not start.
    """
    run = memory.program(config, topology.devices())
    if hbm_gib is None:
        hbm_gib = memory_of(run.mesh.devices.flat[0].device_kind)
    starts = [phase.start for phase in run.phases]
    lengths = [end - start for start, end in itertools.pairwise([*starts, run.total])]
    ends = {0: _estimated(run, topology, 0, lengths[0])}
    if len(starts) > 1:
        ends[len(starts) - 1] = _estimated(run, topology, starts[-1], lengths[-1])
    bounds = [ms for phase in ends.values() for ms in phase.ms]
    between = (min(bounds), max(bounds))
    phases = [
        ends.get(i, PhaseEstimate(None, length, between, {})) for i, length in enumerate(lengths)
    ]
    found = TopologyPlan(topology, hbm_gib, topology.version(), tuple(phases), None)
    smallest = smallest_fitting(found.largest, run.config, topology, hbm_gib)
    return dataclasses.replace(found, smallest=smallest)


def memory_of(device_kind: str) -> float:
    """GiB of a device.

    Raises:
      UserError: they are not known.
    """
    accelerator = accelerators.find(device_kind)
    if accelerator is None:
        raise UserError(f"the memory of a {device_kind} is not known here: give --hbm_gib")
    return accelerator.hbm_gib


def _estimated(run: Program, topology: Target, step: int, steps: int) -> PhaseEstimate:
    """The phase of step number `step`, compiled.

    Raises:
      UserError: the compiler refuses, as where the program does not fit the memory.
    """
    compiler = f"{topology} by {topology.version()}"
    try:
        plan, text = memory.compiled_plan(run, step, topology.compile, compiler)
    except jax.errors.JaxRuntimeError as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"the compiler for {topology} refuses the step: {reason}") from error
    # A step is three forward passes, as where the share of a peak is measured.
    operations = 3 * 2e9 * Cost(run).gmacs(step) * plan.batch_size_per_device
    estimate = topology.estimate(text, operations, run.config.model.dtype)
    return PhaseEstimate(plan, steps, step_ms(plan, estimate, topology), estimate.unknown)


def step_ms(plan: Plan, estimate: Estimate, topology: Target) -> tuple[float, float]:
    """Milliseconds of a step: communication hidden behind the products, and not hidden at all."""
    sent = sum(found.sent_bytes for found in plan.collectives.values())
    least, most = estimate.ms
    return least, most + 1e3 * sent / topology.links


def smallest_fitting(
    plan: Plan, config: ConfigDict, topology: Target, hbm_gib: float
) -> Target | None:
    """The smallest slice that a plan's run should fit: its activations grow with a device's images.

    What a device holds of the state changes only where `mesh.fsdp` is all devices.
    """
    temporary = plan.activation_bytes_per_device
    state = plan.total_bytes_per_device - temporary
    for candidate in topology.sizes():
        devices = plan.devices * candidate.chips // topology.chips
        splits = config.batch_size % (devices * config.accumulate) == 0
        meshes = [size for size in (config.mesh.data, config.mesh.fsdp) if size != -1]
        if not splits or any(devices % size for size in meshes):
            continue
        more = plan.devices / devices
        if state * (more if config.mesh.fsdp == -1 else 1) + temporary * more <= (
            hbm_gib * accelerators.GIB
        ):
            return candidate
    return None


def main(config: ConfigDict, *, topology: str, hbm_gib: float | None, as_json: bool) -> int:
    """The command; JAX may not have looked for devices yet. Returns the exit status.

    Raises:
      UserError: there is no such slice, or the config does not fit it, or there is no compiler.
    """
    chosen = targets.parse(topology)
    chosen.check_installed("--topology")
    with chosen.alone():
        found = make(config, chosen, hbm_gib)
    report = topology_report.as_json if as_json else topology_report.as_text
    print(report(found), flush=True)
    return 0
