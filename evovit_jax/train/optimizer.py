"""The optimiser: clipping, AdamW or LAMB, and what rules say of single parameters."""

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
        return rules.match(optim[field], params, field=f"optim.{field}")

    decays = {
        name: optim.weight_decay * factor for name, factor in say("weight_decay_rules").items()
    }
    rates, frozen = say("learning_rate_rules"), say("freeze_rules")
    for name, factor in rates.items():
        frozen[name] = frozen[name] or factor == 0
    parts = []
    if optim.agc:
        parts.append(_adaptive_clip(optim.agc))
    if optim.clip_norm:
        parts.append(optax.clip_by_global_norm(optim.clip_norm))
    parts += [
        optax.scale_by_adam(b1=optim.beta1, b2=optim.beta2, eps=optim.eps),
        _add_decay(decays),
    ]
    if optim.name == "lamb":
        parts.append(optax.scale_by_trust_ratio())
    parts += [_scale_each(rates), optax.scale_by_learning_rate(schedule)]
    return _lenient(_held(optax.chain(*parts), frozen, freeze))


def _adaptive_clip(largest: float) -> optax.GradientTransformation:
    """Clips each unit's gradient to `largest` of its weights' norm (Brock et al., 2021, eq. 3).

    Units are timm's, with which LeViT was trained: an output of a kernel, the first index of other
    arrays (a head's attention biases, all positions together), a whole vector. Optax takes the
    first axis as a kernel's inputs whatever the array is.
    """

    def norm(x: jax.Array, axes: tuple[int, ...] | None) -> jax.Array:
        return jnp.sqrt(jnp.square(x).sum(axes, keepdims=True))

    def update(updates: Variables, params: Variables | None) -> Variables:
        clipped = {}
        for name, value in updates.items():
            if _is_masked(value):
                clipped[name] = value
                continue
            axes = _unit_axes(name, value.ndim)
            limit = largest * jnp.maximum(norm(params[name], axes), 1e-3)
            size = norm(value, axes)
            factor = jnp.where(size > limit, limit / jnp.maximum(size, 1e-6), 1.0)
            clipped[name] = value * factor
        return clipped

    return optax.stateless(update)


def _unit_axes(name: str, ndim: int) -> tuple[int, ...] | None:
    if ndim < 2:
        return None
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


def _add_decay(decays: dict[str, float]) -> optax.GradientTransformation:
    """Adds `decay * parameter` to each update."""

    def update(updates: Variables, params: Variables | None) -> Variables:
        return {
            name: value
            if _is_masked(value) or not decays[name]
            else value + decays[name] * params[name]
            for name, value in updates.items()
        }

    return optax.stateless(update)


def _scale_each(factors: dict[str, float]) -> optax.GradientTransformation:
    """Multiplies each parameter's update by its own factor."""

    def update(updates: Variables, params: Variables | None) -> Variables:
        del params
        return {
            name: value if _is_masked(value) or factors[name] == 1 else value * factors[name]
            for name, value in updates.items()
        }

    return optax.stateless(update)


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


def _is_masked(value: object) -> bool:
    return isinstance(value, optax.MaskedNode)
