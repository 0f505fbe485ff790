"""How long things last: `NAME_steps`, `NAME_epochs` or `NAME_examples`, one of the three given."""

import math
import re
from collections.abc import Iterable

from ml_collections import ConfigDict

from evovit_jax.errors import UserError

NAMES = (
    "total",
    "warmup",
    "checkpoint",
    "eval",
    "log",
    "layer_to_stage",
    "keep_rate_start",
    "keep_rate_warmup",
    "freeze",
)
# Those that a reducer's schedule may read.
OF_REDUCTIONS = ("layer_to_stage", "keep_rate_start", "keep_rate_warmup")
UNITS = ("steps", "epochs", "examples")
MOST_STEPS = 2**31 - 1  # what an optimiser counts to


def steps(config: ConfigDict, name: str, examples: int) -> int | None:
    """The duration `name` in optimiser steps, rounded up; None where none of the three is given.

    Args:
      config: the run's, with the fields `{name}_steps`, `{name}_epochs`, `{name}_examples`.
      name: one of `NAMES`.
      examples: the number of training examples of an epoch.

    Raises:
      UserError: two of the three are given, or the one given is negative, not finite or more steps
        than can be counted.
    """
    given = {unit: config[f"{name}_{unit}"] for unit in UNITS}
    given = {unit: value for unit, value in given.items() if value is not None}
    if not given:
        return None
    if len(given) > 1:
        fields = " and ".join(f"{name}_{unit}" for unit in given)
        raise UserError(f"{fields} are both given: keep one and set the other to None")
    ((unit, value),) = given.items()
    if value < 0:
        raise UserError(f"{name}_{unit}={value} is negative")
    if value != value or value == math.inf:
        raise UserError(f"{name}_{unit}={value} is not a finite number")
    most = {"steps": 1, "epochs": config.batch_size / examples, "examples": config.batch_size}[unit]
    if value > MOST_STEPS * most:
        raise UserError(f"{name}_{unit}={value} is more than {MOST_STEPS} steps")
    if unit == "steps":
        return int(value)
    # Rounded first, so that 0.1 epochs of 1,000 examples are 100 and not 100.00000000000001.
    seen = round(value * examples, 6) if unit == "epochs" else value
    return math.ceil(seen / config.batch_size)


def settle(config: ConfigDict, given: Iterable[str]) -> None:
    """Makes the fields that the command line gave replace their siblings, in place.

    `--config.total_steps=10` on a recipe of `total_epochs = 300` trains for ten steps.
    """
    given = set(given)
    for name in NAMES:
        chosen = [unit for unit in UNITS if f"{name}_{unit}" in given]
        if chosen:
            for unit in UNITS:
                if unit not in chosen:
                    config[f"{name}_{unit}"] = None


def profile_steps(spec: str) -> range:
    """The steps of "FIRST:END", END not included; none for "".

    Raises:
      UserError: it is not of that form, or holds no step.
    """
    if not spec:
        return range(0)
    found = re.fullmatch(r"(\d{1,18}):(\d{1,18})", spec, re.ASCII)
    steps = range(int(found[1]), int(found[2])) if found else range(0)
    if not steps:
        raise UserError(f"profile_steps={spec!r}: say FIRST:END, such as 100:110 for ten steps")
    return steps
