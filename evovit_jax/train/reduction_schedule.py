"""What changes of the reduction while a run goes on: static settings by step.

Every distinct setting is a compiled program, so a schedule is a short list of phases, which the
reducer makes (`Reducer.schedule`) of the durations that the config gives.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from evovit_jax.config import durations
from evovit_jax.errors import UserError
from evovit_jax.models import model_entry
from evovit_jax.reduction.schedule import Timeline


@dataclasses.dataclass(frozen=True)
class Phase:
    """From step `start` on, the reducer runs with `overrides` (field and value pairs)."""

    start: int
    overrides: tuple[tuple[str, Any], ...]


def plan(config: ConfigDict, *, total: int, examples: int) -> tuple[Phase, ...]:
    """The phases of a run in order; the first starts at step 0.

    Args:
      config: the run's.
      total: steps of the whole training.
      examples: examples of an epoch.

    Raises:
      UserError: a duration is given that the reduction's schedule does not know.
    """
    name, reducer, fields = model_entry(config.model.name).reduction_fields(config.reduction)
    steps = {kind: durations.steps(config, kind, examples) for kind in durations.OF_REDUCTIONS}
    given = {kind: length for kind, length in steps.items() if length is not None}
    for kind in given:
        if kind not in reducer.durations:
            raise UserError(f"{kind}_* is given, but the schedule of reduction {name!r} has none")
    timeline = Timeline(name, total, given, levels=config.keep_rate_levels)
    changes = reducer.schedule(reducer.Fields(**fields), timeline)
    phases: list[Phase] = []
    now: dict[str, Any] = {}
    for start in sorted({0, *changes}):
        now = now | changes.get(start, {})
        phases.append(Phase(start, tuple(sorted(now.items()))))
    return tuple(phases)


def at(phases: tuple[Phase, ...], step: int) -> Phase:
    """The phase that step number `step` (0 the first) belongs to."""
    return [phase for phase in phases if phase.start <= step][-1]


def describe(phase: Phase) -> str:
    """A phase in a line."""
    settings = ", ".join(f"{name}={value}" for name, value in phase.overrides) or "as configured"
    return f"from step {phase.start} on the reduction runs with {settings}"
