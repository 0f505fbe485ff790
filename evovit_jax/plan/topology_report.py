"""A plan for a slice: what it holds, as pages for people, and as JSON for programs.

Tested in tests/plan/topology_test.py.
"""

import dataclasses
from typing import Any

from evovit_jax import tables
from evovit_jax.hardware.target import Target
from evovit_jax.plan import report
from evovit_jax.plan.report import Plan


@dataclasses.dataclass(frozen=True)
class PhaseEstimate:
    """A phase of the reduction's schedule.

    Attributes:
      plan: its step; None where it was not compiled.
      steps: how many the run takes of it.
      ms: milliseconds of a step, the least and the most that the compiler's estimates allow.
      without_estimate: operations that have none, by name.
    """

    plan: Plan | None
    steps: int
    ms: tuple[float, float]
    without_estimate: dict[str, int]


@dataclasses.dataclass(frozen=True)
class TopologyPlan:
    """A run on a slice.

    Attributes:
      topology: the slice.
      hbm_gib: memory of a device.
      estimate_of: the compiler.
      phases: in order.
      smallest: the smallest slice of the generation that the run should fit, by this one's memory
        scaled to its images a device; None where it fits none.
    """

    topology: Target
    hbm_gib: float
    estimate_of: str
    phases: tuple[PhaseEstimate, ...]
    smallest: Target | None

    @property
    def largest(self) -> Plan:
        """The plan of the phase that needs the most memory."""
        plans = [phase.plan for phase in self.phases if phase.plan]
        return max(plans, key=lambda plan: plan.total_bytes_per_device)

    @property
    def hours(self) -> tuple[float, float]:
        """Of the run's steps, without evaluating, saving and compiling: the least and the most."""
        least, most = (
            sum(phase.steps * phase.ms[i] for phase in self.phases) / 3.6e6 for i in (0, 1)
        )
        return least, most


def as_json(found: TopologyPlan) -> str:
    """One JSON object: the fields of the plan that needs the most, and the estimates."""
    return tables.json_line(
        report.fields(found.largest, found.hbm_gib)
        | {
            "topology": str(found.topology),
            "estimate_of": found.estimate_of,
            "phases": [_phase_fields(phase, found.hbm_gib) for phase in found.phases],
            "estimated_hours": round(found.hours[1], 2),
            "estimated_hours_low": round(found.hours[0], 2),
            "smallest_topology": found.smallest and str(found.smallest),
        }
    )


def _phase_fields(phase: PhaseEstimate, hbm_gib: float) -> dict[str, Any]:
    return {
        "plan": phase.plan and report.fields(phase.plan, hbm_gib),
        "steps": phase.steps,
        "estimated_ms": round(phase.ms[1], 2),
        "estimated_ms_low": round(phase.ms[0], 2),
        "without_estimate": phase.without_estimate,
    }


def as_text(found: TopologyPlan) -> str:
    """A page of text for each phase that was compiled, and the estimates."""
    pages = [report.as_text(phase.plan, found.hbm_gib) for phase in found.phases if phase.plan]
    lines = [f"ESTIMATES {found.topology.what} ({found.estimate_of}), not measurements"]
    for phase in found.phases:
        low, high = phase.ms
        lines.append(f"{phase.steps} steps of {low:.1f} to {high:.1f} ms each")
        if phase.without_estimate:
            named = ", ".join(f"{n} {name}" for name, n in phase.without_estimate.items())
            lines.append(f"NOT COUNTED in such a step: {named}")
    low, high = found.hours
    lines.append(f"{low:.1f} to {high:.1f} hours to the end of the recipe, without evaluating")
    smallest = found.smallest or f"none of {found.topology.generation}"
    lines.append(f"the smallest slice that should hold it, by images a device: {smallest}")
    return "\n\n".join([*pages, "\n".join(lines)])
