"""The optimiser, against the formulas and its rules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from evovit_jax import config as config_lib
from evovit_jax.errors import UserError
from evovit_jax.train import optimizer

PARAMS = {
    "blocks/0/kernel": np.array([[1.0, -2.0], [0.5, 4.0]], np.float32),
    "blocks/0/bias": np.array([0.3, -0.7], np.float32),
    "head/kernel": np.array([[2.0], [1.0]], np.float32),
}
GRADS = {
    "blocks/0/kernel": np.array([[0.1, 0.2], [-0.3, 0.4]], np.float32),
    "blocks/0/bias": np.array([1.0, -1.0], np.float32),
    "head/kernel": np.array([[0.5], [0.25]], np.float32),
}


@pytest.fixture
def config():
    c = config_lib.get_config()
    c.optim.weight_decay = 0.1
    return c


def run(config, steps=3, rate=0.01, freeze=None, grads=GRADS):
    tx = optimizer.optimizer(config, PARAMS, lambda step: jnp.float32(rate), freeze=freeze)

    @jax.jit
    def all_steps(params, grads):
        state, history = tx.init(params), []
        for _ in range(steps):
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            history.append(params)
        return history, state

    return jax.device_get(all_steps(PARAMS, grads))


def adamw(params, grad, steps, rate, decay, b1=0.9, b2=0.999, eps=1e-8):
    p, m, v = np.array(params, np.float64), 0.0, 0.0
    g = np.array(grad, np.float64)
    for t in range(1, steps + 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        p = p - rate * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * p)
    return p


def test_adamw_decays_no_biases(config):
    found = run(config)[0][-1]
    for name, value in PARAMS.items():
        decay = 0.0 if name.endswith("bias") else 0.1
        np.testing.assert_allclose(
            found[name], adamw(value, GRADS[name], 3, 0.01, decay), rtol=1e-5
        )


def test_learning_rate_rules(config):
    config.optim.learning_rate_rules = ((r"blocks/.*", 0.1), (".*", 1.0))
    found = run(config)[0][-1]
    name = "blocks/0/kernel"
    np.testing.assert_allclose(
        found[name], adamw(PARAMS[name], GRADS[name], 3, 0.001, 0.1), rtol=1e-5
    )
    name = "head/kernel"
    np.testing.assert_allclose(
        found[name], adamw(PARAMS[name], GRADS[name], 3, 0.01, 0.1), rtol=1e-5
    )


def test_frozen_parameters_keep_their_bits_and_have_no_moments(config):
    config.optim.freeze_rules = (("head/.*", True), (".*", False))
    config.optim.clip_norm = 0.1
    history, state = run(config)
    assert (history[-1]["head/kernel"] == PARAMS["head/kernel"]).all()
    assert not (history[-1]["blocks/0/kernel"] == PARAMS["blocks/0/kernel"]).any()
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert (2, 1) not in shapes
    # The gradients of what is frozen do not count in the clipped norm.
    alone = dict(GRADS, **{"head/kernel": np.float32(1e6) * GRADS["head/kernel"]})
    for name, value in run(config, grads=alone)[0][-1].items():
        np.testing.assert_array_equal(value, history[-1][name])


def test_a_multiplier_of_zero_freezes(config):
    config.optim.learning_rate_rules = (("head/.*", 0.0), (".*", 1.0))
    assert (run(config)[0][-1]["head/kernel"] == PARAMS["head/kernel"]).all()


def test_frozen_for_a_while(config):
    config.optim.freeze_rules = (("head/.*", True), (".*", False))
    history, _ = run(config, steps=3, freeze=2)
    frozen = [bool((params["head/kernel"] == PARAMS["head/kernel"]).all()) for params in history]
    assert frozen == [True, True, False]


def test_clipping_by_the_global_norm(config):
    config.optim.clip_norm = 1e-3
    norm = np.sqrt(sum(float((g**2).sum()) for g in GRADS.values()))
    clipped = {name: g * np.float32(1e-3 / norm) for name, g in GRADS.items()}
    expected = run(config_with(config, clip_norm=0.0), grads=clipped)[0][-1]
    for name, value in run(config)[0][-1].items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5)


def test_adaptive_clipping_is_by_unit(config, monkeypatch):
    # Brock et al., 2021: |gradient| of a unit is at most 0.01 of |weights|, at least 1e-3. Units
    # are timm's: the axes besides these are one of them.
    axes = {
        "conv/kernel": (0, 1, 2),
        "blocks/0/kernel": (0,),
        "blocks/0/attention_bias": (1,),
        "pos_embed": (1, 2),
        "blocks/0/bias": (0,),
    }
    shapes = {
        "conv/kernel": (3, 3, 2, 4),
        "blocks/0/kernel": (4, 6),
        "blocks/0/attention_bias": (2, 5),
        "pos_embed": (1, 5, 6),
        "blocks/0/bias": (6,),
    }
    rng = np.random.default_rng(0)

    def draw(scale):
        return {n: (scale * rng.normal(size=s)).astype(np.float32) for n, s in shapes.items()}

    params, grads = draw(0.5), draw(0.01)
    params["blocks/0/attention_bias"] = np.zeros((2, 5), np.float32)
    monkeypatch.setitem(globals(), "PARAMS", params)
    clipped = {}
    for name, g in grads.items():
        norm, size = (np.sqrt((x**2).sum(axes[name], keepdims=True)) for x in (g, params[name]))
        clipped[name] = g * np.minimum(1, 0.01 * np.maximum(size, 1e-3) / norm)
        assert (clipped[name] != g).any()
    config.optim.weight_decay = 0.0
    expected = run(config, steps=1, grads=clipped)[1][0].mu
    found = run(config_with(config, agc=0.01), steps=1, grads=grads)[1][1].mu
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_the_state_is_that_of_older_checkpoints(config):
    # Restoring compares the trees, those of parts without a state too.
    config.optim.update(agc=0.01, learning_rate_rules=((r"blocks/.*", 0.1), (".*", 1.0)))
    empty, adam, moving = optax.EmptyState, optax.ScaleByAdamState, optax.ScaleByScheduleState
    _, state = run(config, steps=1)
    assert [type(part) for part in state] == [empty, adam, empty, empty, moving]
    config.optim.freeze_rules = (("head/.*", True), (".*", False))
    _, held = run(config, steps=1)
    assert set(held.inner_states) == {"trained", "frozen"}
    inner = held.inner_states["trained"].inner_state
    assert [type(part) for part in inner] == [empty, adam, empty, empty, moving]


def config_with(config, **fields):
    other = config.copy_and_resolve_references()
    other.optim.update(**fields)
    return other


def test_lamb_steps_by_the_norm_of_the_parameter(config):
    config.optim.name = "lamb"
    config.optim.weight_decay = 0.0
    found = run(config, steps=1)[0][-1]
    for name, value in PARAMS.items():
        moved = np.linalg.norm(found[name] - value) / np.linalg.norm(value)
        np.testing.assert_allclose(moved, 0.01, rtol=1e-4)


def test_unknown_optimiser(config):
    config.optim.name = "adam"
    with pytest.raises(UserError, match="did you mean 'adamw'"):
        run(config)


def test_a_parameter_that_no_rule_matches_is_an_error(config):
    config.optim.weight_decay_rules = (("blocks/.*", 1.0),)
    with pytest.raises(UserError, match=r"optim.weight_decay_rules matches 'head/kernel'"):
        run(config)
