"""The state of a training, and a module's variables as flat dicts by name."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

# By name ("blocks/0/attn/qkv/kernel") arrays, or their shapes, or their shardings.
Variables = dict[str, Any]


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


class Skeleton:
    """A module without its variables: what makes one of flat dicts again, inside a jitted step."""

    def __init__(self, model: nnx.Module):
        self.graphdef, *states = nnx.split(model, nnx.Param, ...)
        self._paths = tuple(
            {"/".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}
            for state in states
        )

    @staticmethod
    def variables(model: nnx.Module) -> tuple[Variables, Variables]:
        """The parameters, and everything else, of `model` by name (shapes, of an abstract one)."""
        _, *states = nnx.split(model, nnx.Param, ...)
        params, stats = (
            {"/".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
            for state in states
        )
        return params, stats

    def build(self, params: Variables, stats: Variables) -> nnx.Module:
        """The module with these variables."""
        states = (
            nnx.from_flat_state({path: variables[name] for name, path in paths.items()})
            for paths, variables in zip(self._paths, (params, stats), strict=True)
        )
        return nnx.merge(self.graphdef, *states)


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
