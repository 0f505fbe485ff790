"""DynamicViT on maps: counts, both passes, gradients, losses, and training on eight devices.

That both passes compute what the authors' code computes is in parity_test.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from tiny import CONFIGS, filled, run_model
from tiny_sizes import CONVNEXT

from evovit_jax import config as config_lib
from evovit_jax import flops
from evovit_jax.errors import UserError
from evovit_jax.models import abstract_model
from evovit_jax.models.outputs import Outputs
from evovit_jax.models.variables import Skeleton
from evovit_jax.parallel import sharding
from evovit_jax.reduction import Backbone, create_reducer, dynamic_vit, token_counts
from evovit_jax.reduction.map_blocks import MapBlocks
from evovit_jax.train.program import build

ONE = "dynamicvit,stage=1,locations=1:,keep_rate=0.6"
TWO = "dynamicvit,stage=1,locations=1:2,keep_rate=0.6:0.4"


def tiny(spec, **overrides):
    """One block with one path and three with two, over 5x5 positions."""
    return filled("convnext_tiny", spec, **{**CONVNEXT, "num_classes": 5, **overrides})


def images(batch=2):
    return jax.random.normal(jax.random.key(5), (batch, 20, 20, 3))


def backbone(*depth, adds_to="input", layer_scale=1e-6):
    blocks = MapBlocks(
        mixing="windows",
        adds_to=adds_to,
        drop_path_rates=(0.0,) * sum(depth),
        norm_eps=1e-6,
        layer_scale=layer_scale,
    )
    width, grid = (8,) * len(depth), (56, 56)
    return Backbone(sum(depth), width, width, grid, 0, depth, stride=2, map_blocks=blocks)


def made(spec, network):
    """A reducer without values of its parameters."""
    return nnx.eval_shape(lambda: create_reducer(spec, network, rngs=nnx.Rngs(0)))


def slow_positions(spec, *depth):
    reducer = made(spec, backbone(*depth))
    counts = token_counts.count(reducer, (56, 56))
    assert all(c.entering == c.attention == c.leaving for c in counts)
    return [c.feed_forward for c in counts[sum(depth[:2]) : -depth[-1]]]


@pytest.mark.parametrize(
    ("spec", "depth", "expected"),
    [
        ("dynamicvit", (3, 3, 9, 3), [196, 137, 97, *[58] * 6]),
        ("dynamicvit,keep_rate=0.7:0.5:0.3", (2, 2, 6, 2), [196, 137, 98, 58, 58, 58]),
        ("dynamicvit,keep_rate=0.9", (3, 3, 9, 3), [196, 176, 137, *[98] * 6]),
        pytest.param(
            "dynamicvit",
            (2, 2, 18, 2),
            [196, 196, 137, 137, 97, 97, *[58] * 12],
            marks=pytest.mark.slow,
        ),
        ("dynamicvit,locations=0:,keep_rate=1.0", (1, 1, 2, 1), [196, 196]),
        pytest.param(
            "dynamicvit",
            (3, 3, 27, 3),
            [*[196] * 3, *[137] * 3, *[97] * 3, *[58] * 18],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_counts_are_static_and_those_of_the_authors(spec, depth, expected):
    assert slow_positions(spec, *depth) == expected


PUBLISHED = {
    ("convnext_tiny", 0.7): 3.6,
    ("convnext_tiny", 0.9): 3.9,
    ("convnext_small", 0.7): 5.8,
    ("convnext_small", 0.9): 6.8,
    ("convnext_base", 0.7): 10.2,
    ("convnext_base", 0.9): 11.9,
    ("swin_tiny_patch4_window7_224", 0.7): 4.0,
    ("swin_small_patch4_window7_224", 0.7): 6.9,
    ("swin_base_patch4_window7_224", 0.7): 12.1,
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rate"), PUBLISHED)
def test_multiply_adds_are_the_published_ones(name, rate):
    model = abstract_model(name, f"dynamicvit,keep_rate={rate}")
    assert flops.gmacs(model) == pytest.approx(PUBLISHED[name, rate], rel=0.02)


def training_pass(model, batch, key=None):
    """(loss, (logits, outputs), gradients) of a training pass, in one program."""
    skeleton, (params, stats) = Skeleton(model), Skeleton.variables(model)

    def loss(params, batch):
        logits, out = skeleton.build(params, stats)(batch, train=True, key=key)
        on_labels = -jax.nn.log_softmax(logits)[:, 0].mean()
        return on_labels + sum(out.losses.values()), (logits, out)

    (value, found), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch)
    return value, found, gradients


def first_fifteen(log_probs, key):
    """A decision for the fifteen most probable positions, with the gradient of a drawn one."""
    del key
    keep = log_probs[:, :, 0]
    slow = (keep[:, None, :] > keep[:, :, None]).sum(axis=-1) < 15
    soft, hard = jnp.exp(log_probs), jnp.stack([slow, ~slow], axis=-1).astype(jnp.float32)
    return hard + (soft - jax.lax.stop_gradient(soft))


def test_both_passes_agree_where_no_position_changes_sides(monkeypatch):
    """With one location the streams of training hold what inference computes."""
    monkeypatch.setattr(dynamic_vit, "sample", first_fifteen)
    model, image = tiny(ONE), images(1)
    _, (masked, out), gradients = training_pass(model, image)
    slow = np.asarray(out.aux["decisions"])
    assert slow.sum() == 15
    gathered, split = run_model(model, image)
    np.testing.assert_allclose(gathered, masked, atol=1e-4, rtol=1e-4)
    np.testing.assert_array_equal(split.aux["decisions"], slow)
    # While a block works on the slow positions the others are away, and back after it.
    inside, after = (np.asarray(split.token_maps[i][0]).reshape(10, 10) for i in (2, -1))
    np.testing.assert_array_equal((inside[::2, ::2] >= 0).ravel(), slow[0, 0] > 0.5)
    np.testing.assert_array_equal(after[::2, ::2].ravel(), np.arange(25))
    np.testing.assert_array_equal(inside[::2, ::2], inside[1::2, 1::2])
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0, name


@pytest.mark.slow
def test_each_image_has_its_own_positions_in_a_batch_of_two():
    model = tiny(TWO)
    logits, out = run_model(model, images(2))
    decisions = np.asarray(out.aux["decisions"])
    np.testing.assert_array_equal(decisions.sum(axis=2), [[15, 10]] * 2)
    assert (decisions[0] != decisions[1]).any()
    # The second choice is among all positions, not among those of the first.
    assert (decisions[:, 1] > decisions[:, 0]).any()
    for i in range(2):
        alone, _ = run_model(model, images(2)[i : i + 1])
        np.testing.assert_allclose(alone[0], logits[i], atol=1e-5)


@pytest.mark.slow
def test_every_parameter_learns_under_chance_and_stochastic_depth():
    value, (_, out), gradients = training_pass(
        tiny(TWO, drop_path_rate=0.2), images(8), jax.random.key(0)
    )
    assert np.isfinite(value)
    assert set(np.unique(out.aux["decisions"])) == {0.0, 1.0}
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0, name


@pytest.mark.slow
def test_exports_with_a_symbolic_batch():
    model = tiny(TWO)
    (batch,) = export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((batch, 20, 20, 3), jnp.float32)
    exported = export.export(jax.jit(lambda x: model(x)[0]))(shape)
    expected, _ = run_model(model, images(3))
    np.testing.assert_allclose(exported.call(images(3)), expected, atol=1e-5)


def test_the_losses_against_the_dense_network():
    reducer = made("dynamicvit", backbone(1, 1, 4, 1))
    rng = np.random.default_rng(0)
    logits, taught = jnp.asarray(rng.normal(size=(2, 2, 5)), jnp.float32)
    ours, theirs = jnp.asarray(rng.normal(size=(2, 2, 4, 8)), jnp.float32)
    found = reducer.teacher_losses(logits, Outputs(ours), taught, Outputs(theirs))
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (taught, logits))
    divergence = (p * np.log(p / q)).sum(axis=1).mean()
    np.testing.assert_allclose(found["distill_logits"], divergence, rtol=1e-5)
    np.testing.assert_allclose(found["distill_tokens"], ((ours - theirs) ** 2).mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dynamicvit,stage=4", r"stage must be in 0\.\.3, got 4"),
        ("dynamicvit,locations=1:9", r"increasing block numbers in 0\.\.3"),
        ("dynamicvit,keep_rate=0.5:0.3", "keep_rate has 2 members for 3 locations"),
        ("dynamicvit,keep_rate=0.4", "falls by 0.2 a location and leaves nothing"),
        ("dynamicvit,keep_rate=1.5", r"keep_rate must be a number in \(0, 1\]"),
        ("tome", "the windows in its blocks need a token in every place"),
    ],
)
def test_bad_settings_say_what_is_wrong(spec, message):
    with pytest.raises(UserError, match=message):
        made(spec, backbone(1, 1, 4, 1))


def test_places_of_predictors_belong_to_the_weights():
    reducer = made("dynamicvit", backbone(1, 1, 4, 1))
    assert reducer.override(keep_rate=0.9).grid_count(0, (14, 14)) == 176
    with pytest.raises(UserError, match="parameters for each of its locations"):
        reducer.override(locations=(1, 2))
    assert len(reducer.fast_path) == 3
    plain = made("dynamicvit", backbone(1, 1, 4, 1, layer_scale=None))
    assert plain.fast_path[0].gamma is None


RECIPES = ("convnext_t_dynamic", "swin_t_dynamic")


@functools.cache
def two_steps(recipe, devices):
    """The losses of two steps of a recipe's smoke form, and its parameters before and after."""
    config = config_lib.load(f"{CONFIGS / recipe}.py:smoke")
    config.update(checkpoint_steps=None, eval_steps=None)
    config.mesh.data = devices
    run = build(config, jax.devices()[:devices])
    rng = np.random.default_rng(0)
    with jax.set_mesh(run.mesh):
        state, teacher, losses = run.fresh_state(), run.load_teacher(), []
        before = jax.device_get(state.params)
        for step in range(2):
            batch = {
                "image": rng.integers(0, 256, (16, 32, 32, 3), np.uint8),
                "label": rng.integers(0, 10, 16, np.int32),
            }
            state = run.step_at(step)(state, sharding.put_batch(run.mesh, batch), teacher)
            sums = jax.device_get(state.meter["sums"])
            losses.append({name: float(value) for name, value in sums.items()})
    return losses, before, jax.device_get(state.params)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_steps_of_the_recipe_move_predictors_and_fast_paths(recipe):
    losses, before, after = two_steps(recipe, 1)
    terms = {"loss_ratio", "loss_distill_logits", "loss_distill_tokens"}
    assert terms <= losses[0].keys()
    assert all(np.isfinite(value) for step in losses for value in step.values())
    for name, value in after.items():
        assert np.isfinite(value).all(), name
        assert not name.startswith("reducer/") or (value != before[name]).any(), name


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_eight_devices_train_as_one_does(recipe):
    one, eight = two_steps(recipe, 1), two_steps(recipe, 8)
    for found, expected in zip(eight[0], one[0], strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    for name, value in one[2].items():
        np.testing.assert_allclose(eight[2][name], value, atol=2e-5, err_msg=name)
