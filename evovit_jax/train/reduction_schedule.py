"""What changes of the reduction while a run goes on: static settings by step.

Every distinct setting is a compiled program, so a schedule is a short list of phases: Evo-ViT
selects in every block at first and once a stage later (Section 3.4 of the paper), when Evo-LeViT's
weight of new class attention begins to be learned; a keep rate may fall from 1 to the reducer's own
(EViT, Section 4) in a few levels.
"""

import dataclasses
import math
from typing import Any

from ml_collections import ConfigDict

from evovit_jax.config import durations
from evovit_jax.errors import UserError
from evovit_jax.models import model_entry


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
      UserError: a schedule is given that the reduction has no field for.
    """
    name, reducer, fields = model_entry(config.model.name).reduction_fields(config.reduction)

    def duration(kind: str, needs: str) -> int | None:
        length = durations.steps(config, kind, examples)
        if length is not None and needs not in fields:
            raise UserError(f"{kind}_* is given, but reduction {name!r} has no field {needs!r}")
        return length

    changes: dict[int, dict[str, Any]] = {0: {}}
    switch = duration("layer_to_stage", "selection")
    if "selection" in fields and fields["selection"] == "stage":
        switch = math.ceil(total * 2 / 3) if switch is None else switch
        changes[0]["selection"] = "layer"
        changes.setdefault(switch, {})["selection"] = "stage"
        if fields.get("tradeoff") == "learned":  # as the official code of Evo-LeViT does
            changes[0]["tradeoff"] = "fixed"
            changes[switch]["tradeoff"] = "learned"
    begin = duration("keep_rate_start", "keep_rate") or 0
    length = duration("keep_rate_warmup", "keep_rate")
    if length:
        if "keep_rate" in reducer.fixed_fields:
            raise UserError(
                f"keep_rate_warmup_* is given, but reduction {name!r} has weights for one keep rate"
            )
        if fields["keep_rate"] is None:
            raise UserError(
                f"keep_rate_warmup_* is given: say where it ends, reduction={name},keep_rate=..."
            )
        for step, rate in _keep_rates(begin, length, config.keep_rate_levels, fields["keep_rate"]):
            changes.setdefault(step, {})["keep_rate"] = rate
    return _accumulate(changes)


def _keep_rates(
    begin: int, length: int, levels: int, final: float | tuple[float, ...]
) -> list[tuple[int, Any]]:
    """Steps at which a keep rate falls along a cosine from 1 to `final`, in `levels` levels."""
    found = [(0, _between(final, 1.0))] if begin else []
    for level in range(levels):
        # Level l covers its share of the time, with the rate of the share's middle; the last
        # level is followed by the reducer's own rate.
        step = begin + math.floor(length * level / levels)
        share = (1 + math.cos(math.pi * (level + 0.5) / levels)) / 2
        found.append((step, _between(final, round(share, 4))))
    return [*found, (begin + length, final)]


def _between(final: float | tuple[float, ...], share: float) -> float | tuple[float, ...]:
    """`final` at share 0, 1 at share 1."""
    if isinstance(final, tuple):
        return tuple(_between(rate, share) for rate in final)
    return final + (1 - final) * share


def _accumulate(changes: dict[int, dict[str, Any]]) -> tuple[Phase, ...]:
    now: dict[str, Any] = {}
    phases = []
    for start in sorted(changes):
        now = {**now, **changes[start]}
        phases.append(Phase(start, tuple(sorted(now.items()))))
    return tuple(phases)


def at(phases: tuple[Phase, ...], step: int) -> Phase:
    """The phase that step number `step` (0 the first) belongs to."""
    return [phase for phase in phases if phase.start <= step][-1]


def describe(phase: Phase) -> str:
    """A phase in a line."""
    settings = ", ".join(f"{name}={value}" for name, value in phase.overrides) or "as configured"
    return f"from step {phase.start} on the reduction runs with {settings}"
