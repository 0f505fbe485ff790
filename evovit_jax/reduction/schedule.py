"""What a method changes of its settings over a training, step by step.

Tested in tests/train/reduction_schedule_test.py.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from evovit_jax.errors import UserError

# The config's durations between which a keep rate falls.
KEEP_RATE = ("keep_rate_start", "keep_rate_warmup")

# {step: the settings that change there}; every distinct setting is a compiled program.
Changes = dict[int, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Timeline:
    """The lengths that a schedule is made of.

    Attributes:
      reduction: the method's name, for messages.
      total: steps of the whole training.
      durations: those of the config that are given, in steps, by name (`layer_to_stage`).
      levels: in how many levels a number falls (`keep_rate_levels`).
    """

    reduction: str
    total: int
    durations: Mapping[str, int]
    levels: int = 1


def falling_keep_rate(
    final: float | tuple[float, ...] | None, fixed: Collection[str], timeline: Timeline
) -> Changes:
    """The keep rate is 1 for `keep_rate_start`, then falls over `keep_rate_warmup` to `final`.

    It falls along a cosine (EViT, Section 4), in `levels` levels, or at once without a warm-up.

    Raises:
      UserError: one of the two is given, and there is no `final`, or the keep rate is `fixed`.
    """
    given = [name for name in KEEP_RATE if name in timeline.durations]
    if not given:
        return {}
    if "keep_rate" in fixed:
        raise UserError(
            f"{given[0]}_* is given, but reduction {timeline.reduction!r} has weights for one keep "
            "rate"
        )
    if final is None:
        raise UserError(
            f"{given[0]}_* is given: say where it ends, "
            f"reduction={timeline.reduction},keep_rate=..."
        )
    begin, length = (timeline.durations.get(name, 0) for name in KEEP_RATE)
    levels = timeline.levels if length else 0
    rates = {0: _between(final, 1.0)} if begin else {}
    for level in range(levels):
        # Level l covers its share of the time, with the rate of the share's middle; the last
        # level is followed by the reducer's own rate.
        share = (1 + math.cos(math.pi * (level + 0.5) / levels)) / 2
        rates[begin + math.floor(length * level / levels)] = _between(final, round(share, 4))
    rates[begin + length] = final
    return {step: {"keep_rate": rate} for step, rate in rates.items()}


def _between(final: float | tuple[float, ...], share: float) -> float | tuple[float, ...]:
    """`final` at share 0, 1 at share 1."""
    if isinstance(final, tuple):
        return tuple(rate + (1 - rate) * share for rate in final)
    return final + (1 - final) * share
