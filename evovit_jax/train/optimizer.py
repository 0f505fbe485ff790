"""The optimiser: clipping, AdamW or LAMB, and what rules say of single parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from evovit_jax import rules
from evovit_jax.errors import UserError, suggestion
from evovit_jax.models.variables import Variables
from evovit_jax.train.learning_rate import Schedule

NAMES = ("adamw", "lamb")


def optimizer(
    config: ConfigDict, params: Variables, schedule: Schedule, *, freeze: int | None = None
) -> optax.GradientTransformation:
    """The run's optimiser for these parameters (arrays or their shapes, by name).

    Args:
      config: the run's, `config.optim`.
      params: what is trained.
      schedule: the learning rate by step.
      freeze: steps for which `freeze_rules` hold; None for the whole training.

    Raises:
      UserError: for an unknown optimiser, or a parameter that a group of rules does not match.
    """
    optim = config.optim
    if optim.name not in NAMES:
        raise UserError(f"unknown optim.name {optim.name!r}; {suggestion(optim.name, NAMES)}")

    def say(field: str) -> dict:
        return rules.numbers(optim[field], params, field=f"optim.{field}")

    decays = {
        name: optim.weight_decay * factor for name, factor in say("weight_decay_rules").items()
    }
    rates, frozen = say("learning_rate_rules"), say("freeze_rules")
    for name, factor in rates.items():
        frozen[name] = frozen[name] or factor == 0
    parts = []
    if optim.agc:
        # Brock et al., 2021, equation 3.
        axes = {name: _unit_axes(name, len(value.shape)) for name, value in params.items()}
        parts.append(_each(lambda axis: optax.adaptive_grad_clip(optim.agc, axis=axis), axes))
    if optim.clip_norm:
        parts.append(optax.clip_by_global_norm(optim.clip_norm))
    parts += [
        optax.scale_by_adam(b1=optim.beta1, b2=optim.beta2, eps=optim.eps),
        _each(_decay, decays),
    ]
    if optim.name == "lamb":
        parts.append(optax.scale_by_trust_ratio())
    parts += [_each(optax.scale, rates), optax.scale_by_learning_rate(schedule)]
    return _lenient(_held(optax.chain(*parts), frozen, freeze))


def _each(
    make: Callable[[Any], optax.GradientTransformation], values: dict[str, Any]
) -> optax.GradientTransformation:
    """`make(value)` on the parameters that have this value."""
    labels = {name: str(value) for name, value in values.items()}
    tx = optax.partition({str(value): make(value) for value in values.values()}, labels)
    # None of them has a state of its own, and a checkpoint need not know how they were grouped.
    return optax.stateless(lambda updates, params: tx.update(updates, tx.init(params), params)[0])


def _decay(rate: float) -> optax.GradientTransformation:
    return optax.add_decayed_weights(rate) if rate else optax.identity()


def _unit_axes(name: str, ndim: int) -> tuple[int, ...]:
    """The axes of one unit of a parameter, whose gradient adaptive clipping bounds.

    Units are timm's, with which LeViT was trained: an output of a kernel, the first index of other
    arrays (a head's attention biases, all positions together), a whole vector.
    """
    if ndim < 2:
        return tuple(range(ndim))
    return tuple(range(ndim - 1)) if name.endswith("kernel") else tuple(range(1, ndim))


def _held(
    tx: optax.GradientTransformation, frozen: dict[str, bool], freeze: int | None
) -> optax.GradientTransformation:
    """`tx` on what is not frozen, or not frozen any more."""
    if not any(frozen.values()):
        return tx
    if freeze is not None:
        return optax.chain(_freeze_until(freeze, frozen), tx, _freeze_until(freeze, frozen))
    labels = {name: "frozen" if held else "trained" for name, held in frozen.items()}
    # Frozen parameters have no moments, and their gradients do not count in clipping.
    return optax.multi_transform({"trained": tx, "frozen": optax.set_to_zero()}, labels)


def _lenient(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` under JAX's standard promotion: Optax raises floats to the power of integer counts."""

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return tx.update(updates, state, params)

    return optax.GradientTransformation(tx.init, update)


def _freeze_until(step: int, frozen: dict[str, bool]) -> optax.GradientTransformation:
    """Zeroes what is frozen until `step` steps were taken."""

    def update(updates, state, params=None):
        del params
        thawed = state.count >= step
        updates = {
            name: jnp.where(thawed, value, jnp.zeros_like(value)) if frozen[name] else value
            for name, value in updates.items()
        }
        return updates, optax.ScaleByScheduleState(count=state.count + 1)

    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    return optax.GradientTransformation(init, update)
