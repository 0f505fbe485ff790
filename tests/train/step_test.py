"""The training step on one device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from evovit_jax.parallel import sharding
from evovit_jax.train import nan_guard
from evovit_jax.train.program import Run

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
    return Run(tiny_config(**{**QUIET, **fields}), jax.devices()[:1])


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


def test_no_average_evaluates_the_parameters():
    state = take(make_run(ema__decay=0.0), 0)
    assert state.ema == {}
    assert state.evaluated()[0] is state.params


def test_steps_differ_in_what_is_random_and_repeat_from_a_seed():
    fields = {"augment__mixup": 0.8, "augment__erasing_prob": 0.5, "model__drop_path_rate": 0.3}
    run = make_run(**fields, ema__decay=0.0)
    losses = [float(take(run, *[0] * n).meter["sums"]["loss"]) for n in (1, 2, 2)]
    assert losses[1] == losses[2]
    other = float(take(make_run(**fields, ema__decay=0.0, seed=1), 0).meter["sums"]["loss"])
    assert other != losses[0]


@pytest.mark.parametrize("poisoned", ["blocks/1/mlp/fc1/kernel", "head_cls/bias"])
def test_the_guard_names_the_first_bad_tensor_and_keeps_the_state(poisoned):
    run = make_run()
    state = take(run, 0)
    bad = state.params[poisoned].at[(0,) * state.params[poisoned].ndim].set(jnp.nan)
    state = state.replace(params={**state.params, poisoned: bad})
    kept = jax.device_get(state)
    after = take(run, 1, 2, state=state)
    found = run.guarded[int(after.meter["bad"])]
    assert found == "loss_cls"  # only the loss looks at a head; the trunk reaches both
    assert int(after.step) == int(kept.step) == 1
    for name in ("params", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(kept, name), getattr(after, name))


def test_the_guard_tells_gradients_from_losses():
    run = make_run()
    # A finite loss whose gradient is not: the square root of zero.
    step = run._step

    class Infinite(type(step)):
        def loss(self, params, *args, **kwargs):
            total, aux = super().loss(params, *args, **kwargs)
            zero = (params["blocks/0/norm1/bias"] * 0).sum()
            return total + jnp.sqrt(zero), aux

    broken = Infinite(**{f.name: getattr(step, f.name) for f in dataclasses.fields(step)})
    with jax.set_mesh(run.mesh):
        state = jax.jit(broken)(run.fresh_state(), a_batch(run))
    assert run.guarded[int(state.meter["bad"])] == "the gradient of blocks/0/norm1/bias"


def test_no_finding_is_none():
    state = take(make_run(), 0)
    assert int(state.meter["bad"]) == nan_guard.ALL_FINITE
