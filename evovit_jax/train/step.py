"""The pure training step: state and batch in, state out.

Everything random comes from (seed, step) and an example's place in the global batch, never from a
device, so a run is the same on any mesh.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from evovit_jax.data.on_device import Batch
from evovit_jax.models.variables import Skeleton, Variables
from evovit_jax.train import ema, losses, nan_guard
from evovit_jax.train.distillation import Teacher, TeacherValues
from evovit_jax.train.micro_batches import mean_gradients
from evovit_jax.train.prepare_batch import prepare
from evovit_jax.train.state import TrainState, new_state

Overrides = tuple[tuple[str, Any], ...]
# What the meter sums up beside the loss's terms.
MEASURED = ("accuracy", "grad_norm")


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """`step(state, batch, overrides, teacher) -> state` for a network, a loss and an optimiser.

    Attributes:
      config: the run's, with its number of classes.
      skeleton: the network without its variables.
      tx: the optimiser.
      terms: names of the loss's terms, in the order in which the NaN guard looks at them.
      names: the parameters' names, likewise.
      teacher: what the network also learns from; its variables come with each call.
    """

    config: ConfigDict
    skeleton: Skeleton
    tx: optax.GradientTransformation
    terms: tuple[str, ...]
    names: tuple[str, ...]
    teacher: Teacher | None = None

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of what the meter sums up."""
        return (*self.terms, *MEASURED)

    @property
    def _sums_are_wider(self) -> bool:
        """Whether gradients are added up in more bits than the layers compute in."""
        return self.config.grad_reduce_dtype == "float32" != self.config.model.dtype

    def first_state(self, params: Variables, stats: Variables) -> TrainState:
        """The state before the first step."""
        average = self.config.ema.decay > 0
        return new_state(params, stats, self.tx, new_meter(self.measured), keep_average=average)

    def __call__(
        self,
        state: TrainState,
        batch: Batch,
        overrides: Overrides = (),
        teacher: TeacherValues | None = None,
    ) -> TrainState:
        """One optimiser step; the state stays as it was where a tensor is not finite."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), state.step)
        mix_key, model_key = jax.random.split(key)
        images, targets = prepare(self.config, mix_key, batch, self.config.model.num_classes)
        loss = functools.partial(self.loss, overrides=overrides, teacher=teacher)
        grads, stats, terms = mean_gradients(
            loss,
            state.params,
            state.stats,
            images,
            targets,
            model_key,
            parts=self.config.accumulate,
            float32_sums=self._sums_are_wider,
        )
        updates, opt_state = self.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = state.replace(step=state.step + 1, params=params, stats=stats, opt_state=opt_state)
        if state.ema:
            c = self.config.ema
            decay = ema.decay_at(state.step, c.decay, warmup=c.warmup)
            new = new.replace(ema=ema.update(state.ema, {"params": params, "stats": stats}, decay))
        grad_squares = nan_guard.squared_norms(grads)
        update_squares = nan_guard.squared_norms(updates)
        bad = nan_guard.first_bad(
            [
                *(terms[name] for name in self.terms),
                *(grad_squares[name] for name in self.names),
                *(update_squares[name] for name in self.names),
            ]
        )
        bad = jnp.where(state.meter["bad"] == nan_guard.ALL_FINITE, bad, state.meter["bad"])
        measured = {**terms, "grad_norm": nan_guard.norm_of(grad_squares)}
        sums = {name: value + measured.get(name, 0) for name, value in state.meter["sums"].items()}
        meter = {"sums": sums, "steps": state.meter["steps"] + 1, "bad": bad}
        good = bad == nan_guard.ALL_FINITE
        return nan_guard.select(good, new, state).replace(meter=meter)

    def loss(
        self,
        params: Variables,
        stats: Variables,
        images: Float[Array, "b h w c"],
        targets: Float[Array, "b k"],
        key: Key[Array, ""],
        overrides: Overrides = (),
        teacher: TeacherValues | None = None,
    ) -> tuple[Float[Array, ""], tuple[Variables, losses.Terms]]:
        """The loss of a batch; the new statistics and the terms beside it."""
        model = self.skeleton.build(params, stats)
        logits, out = model(images, train=True, key=key, reduction=dict(overrides))
        taught, others = None, None
        if self.teacher is not None:
            taught, others = self.teacher.losses(teacher, images, model, logits, out)
        total, terms = losses.training_loss(self.config, logits, out, targets, taught, others)
        hits = logits.argmax(axis=-1) == targets.argmax(axis=-1)
        if terms.keys() != set(self.terms):
            raise ValueError(
                f"the loss has the terms {sorted(terms)}, and {sorted(self.terms)} were announced: "
                "a reducer names its losses in `loss_names` and `teacher_loss_names`"
            )
        terms["accuracy"] = hits.mean(dtype=jnp.float32)
        return total, (Skeleton.variables(model)[1], terms)


def new_meter(names: Sequence[str]) -> dict[str, Any]:
    """Sums of metrics by name, over no step yet."""
    return {
        "sums": {name: jnp.zeros(()) for name in names},
        "steps": jnp.zeros((), jnp.int32),
        "bad": jnp.full((), nan_guard.ALL_FINITE, jnp.int32),
    }
