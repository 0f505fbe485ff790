"""Every method trains: twenty steps of the trainer on digits, and the loss falls."""

import jax
import numpy as np
import pytest
from tiny import tiny_config

from evovit_jax import reduction
from evovit_jax.parallel import sharding
from evovit_jax.train.program import build

STEPS = 20
EXTRA_LOSSES = {
    "dynamicvit": {"loss_ratio"},
    "avit": {"loss_ponder", "loss_prior"},
    "ltmp": {"loss_budget"},
}


def trained(method):
    """The loss's terms of each of twenty steps, from a run on one device."""
    config = tiny_config(
        model__name="evo_deit_tiny_patch16_224",  # a pooled head learns faster than a class token
        model__depth=4,
        model__embed_dim=48,
        reduction=method,
        total_steps=STEPS,
        warmup_steps=0,
        batch_size=64,
        optim__learning_rate=3e-3,
        augment__crop="none",
        ema__decay=0.0,
    )
    run = build(config, jax.devices()[:1])
    state, taken, terms = run.fresh_state(), next(run.data.train_iterator()), []
    with jax.set_mesh(run.mesh):
        batch = {name: taken[name] for name in ("image", "label")}
        batch = sharding.put_batch(run.mesh, batch)  # the same in every step
        for step in range(STEPS):
            state = run.step_at(step)(state, batch)
            meter = jax.device_get(state.meter)
            terms.append({name: float(total) for name, total in meter["sums"].items()})
            state = state.replace(meter=run.fresh_meter())
    return terms


@pytest.mark.slow
@pytest.mark.parametrize("method", reduction.list_reductions())
def test_the_loss_falls(method):
    terms = trained(method)
    losses = [each["loss"] for each in terms]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:3]) - 0.05
    assert EXTRA_LOSSES.get(method, set()) <= terms[0].keys()
    assert all(each["grad_norm"] > 0 for each in terms)
