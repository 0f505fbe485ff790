"""The state of a training: everything that a step changes.

Tested in tests/workdir/checkpoints_test.py.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from evovit_jax.models.variables import Variables


@functools.partial(
    jax.tree_util.register_dataclass,
    meta_fields=[],
    data_fields=[
        "step",
        "params",
        "stats",
        "opt_state",
        "ema",
        "meter",
    ],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes; all of it is in a checkpoint.

    Attributes:
      step: int32, optimiser steps taken.
      params: float32 trained parameters by name.
      stats: what the forward pass updates (batch statistics) by name.
      opt_state: the optimiser's.
      ema: {"params": ..., "stats": ...}, the running averages; {} where none is kept.
      meter: sums of the metrics since the last line of metrics, and the NaN guard's finding.
    """

    step: Any
    params: Variables
    stats: Variables
    opt_state: optax.OptState
    ema: dict[str, Variables]
    meter: dict[str, Any]

    def replace(self, **changes: Any) -> "TrainState":
        """A copy with `changes`."""
        return dataclasses.replace(self, **changes)

    def evaluated(self) -> tuple[Variables, Variables]:
        """The parameters and statistics that are evaluated and exported: the averages, if any."""
        if self.ema:
            return self.ema["params"], self.ema["stats"]
        return self.params, self.stats


def new_state(
    params: Variables,
    stats: Variables,
    tx: optax.GradientTransformation,
    meter: dict[str, Any],
    *,
    keep_average: bool,
) -> TrainState:
    """The state before the first step."""
    # Copies, since the step donates its state and no buffer may be donated twice.
    ema = {"params": params, "stats": stats} if keep_average else {}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        stats=stats,
        opt_state=tx.init(params),
        ema=jax.tree.map(jnp.copy, ema),
        meter=meter,
    )
