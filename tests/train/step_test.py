"""The training step on one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny import tiny_config

from evovit_jax.models.outputs import Outputs
from evovit_jax.models.variables import Skeleton
from evovit_jax.parallel import sharding
from evovit_jax.train import losses, nan_guard
from evovit_jax.train.program import build
from evovit_jax.train.step import TrainStep

QUIET = {
    "augment__mixup": 0.0,
    "augment__cutmix": 0.0,
    "augment__erasing_prob": 0.0,
    "model__drop_path_rate": 0.0,
    "ema__decay": 0.5,
    "ema__warmup": False,
}


@functools.cache
def make_run(**fields):
    return build(tiny_config(**{**QUIET, **fields}), jax.devices()[:1])


def a_batch(run, seed=0):
    rng = np.random.default_rng(seed)
    size = (run.config.batch_size, 8, 8, 3)
    batch = {
        "image": rng.integers(0, 256, size, np.uint8),
        "label": rng.integers(0, 10, size[0], np.int32),
    }
    return sharding.put_batch(run.mesh, batch)


def take(run, *seeds, state=None):
    with jax.set_mesh(run.mesh):
        state = run.fresh_state() if state is None else state
        for i, seed in enumerate(seeds):
            state = run.step_at(i)(state, a_batch(run, seed))
    return state


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.slow
def test_micro_batches_are_one_big_batch():
    whole, split = (take(make_run(accumulate=n), 0, 1) for n in (1, 4))
    close(whole.meter, split.meter, rtol=1e-5)
    # AdamW divides tiny gradients by their size: compare moments, which are linear in them.
    close(whole.opt_state[0].mu, split.opt_state[0].mu, atol=1e-6, rtol=1e-4)


def test_a_step_learns_and_counts():
    run = make_run(optim__learning_rate=1e-2, warmup_steps=0, total_steps=100)
    state = take(run, *[0] * 20)
    assert int(state.step) == int(state.meter["steps"]) == 20
    first = take(run, 0)
    mean = {name: float(v) / 20 for name, v in state.meter["sums"].items()}
    assert mean["loss"] < float(first.meter["sums"]["loss"])
    assert set(mean) == {"loss", "loss_cls", "accuracy", "grad_norm"}


@pytest.mark.slow
def test_the_average_follows():
    run = make_run()
    with jax.set_mesh(run.mesh):
        before = jax.device_get(run.fresh_state().params)
    state = take(run, 0)
    close(
        state.ema["params"],
        jax.tree.map(lambda a, b: (a + b) / 2, before, jax.device_get(state.params)),
        rtol=1e-5,
        atol=1e-7,
    )
    assert state.evaluated() == (state.ema["params"], state.ema["stats"])


@pytest.mark.slow
def test_no_average_evaluates_the_parameters():
    state = take(make_run(ema__decay=0.0), 0)
    assert state.ema == {}
    assert state.evaluated()[0] is state.params


@pytest.mark.slow
def test_steps_differ_in_what_is_random_and_repeat_from_a_seed():
    fields = {"augment__mixup": 0.8, "augment__erasing_prob": 0.5, "model__drop_path_rate": 0.3}
    run = make_run(**fields, ema__decay=0.0)
    losses = [float(take(run, *[0] * n).meter["sums"]["loss"]) for n in (1, 2, 2)]
    assert losses[1] == losses[2]
    other = float(take(make_run(**fields, ema__decay=0.0, seed=1), 0).meter["sums"]["loss"])
    assert other != losses[0]


@pytest.mark.parametrize(
    ("poisoned", "named"),
    [
        ("blocks/1/mlp/fc1/kernel", "loss_cls"),  # the trunk reaches every term: the first is named
        ("head_cls/bias", "loss_cls"),
        ("head/bias", "loss"),
    ],
)
def test_the_guard_names_the_first_bad_tensor_and_keeps_the_state(poisoned, named):
    run = make_run()
    state = take(run, 0)
    bad = state.params[poisoned].at[(0,) * state.params[poisoned].ndim].set(jnp.nan)
    state = state.replace(params={**state.params, poisoned: bad})
    kept = jax.device_get(state)
    after = take(run, 1, 2, state=state)
    assert run.guarded[int(after.meter["bad"])] == named
    assert int(after.step) == int(kept.step) == 1
    for name in ("params", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(kept, name), getattr(after, name))


class Rooted(nnx.Module):
    """A linear classifier whose gradient is not finite: a root of zero is in its logits."""

    def __init__(self):
        self.kernel = nnx.Param(0.1 * jnp.eye(3, 10))
        self.root = nnx.Param(jnp.zeros(()))

    def __call__(self, images, **settings):
        logits = images.mean(axis=(1, 2)) @ self.kernel[...] + jnp.sqrt(self.root[...])
        return logits, Outputs(features=images[:, 0], losses=self.losses())

    def losses(self):
        return {}


def own_step(model, rate=0.1):
    """A step of gradient descent of any module, and its first state."""
    params, stats = Skeleton.variables(model)
    config = tiny_config(**QUIET, model__num_classes=10, accumulate=1)
    terms = losses.names(config, model)
    step = TrainStep(config, Skeleton(model), optax.sgd(rate), terms, tuple(params))
    return step, step.first_state(params, stats)


def test_the_guard_tells_gradients_from_losses_and_updates():
    step, state = own_step(Rooted())
    after = jax.jit(step)(state, a_batch(make_run()))
    assert np.isfinite(after.meter["sums"]["loss"])
    named = nan_guard.names_of(step.terms, step.names)
    assert named[int(after.meter["bad"])] == "the gradient of root"
    model = Rooted()
    model.root = nnx.Param(jnp.ones(()))
    step, state = own_step(model, rate=jnp.inf)
    after = jax.jit(step)(state, a_batch(make_run()))
    assert named[int(after.meter["bad"])] == "the update of kernel"


def test_a_loss_that_no_reducer_announces_is_an_error():
    class Talkative(Rooted):
        def losses(self):
            return {"extra": jnp.zeros(())}

    step, state = own_step(Talkative())
    with pytest.raises(ValueError, match=r"loss_extra.*names its losses in `loss_names`"):
        jax.jit(step)(state, a_batch(make_run()))


def test_no_finding_is_none():
    state = take(make_run(), 0)
    assert int(state.meter["bad"]) == nan_guard.ALL_FINITE
