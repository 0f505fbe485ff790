"""Learning from a frozen teacher, and batch norm in the step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import evovit_jax
from evovit_jax import config as config_lib
from evovit_jax import weights
from evovit_jax.errors import UserError
from evovit_jax.parallel import sharding
from evovit_jax.train import distillation
from evovit_jax.train.program import build


def config(model="levit_128s", **fields):
    """A recipe's smoke form for `model`, without what is random, with `fields` (a__b: a.b)."""
    c = config_lib.get_config()
    c.model.name = model
    given = {name.replace("__", "."): value for name, value in fields.items()}
    c.update_from_flattened_dict({k: v for k, v in given.items() if k.startswith("distill.")})
    c = config_lib.finish(c, "smoke")
    c.augment.update(mixup=0.0, cutmix=0.0, erasing_prob=0.0, randaugment="")
    c.update_from_flattened_dict(given)
    return c


REGNET = {
    "distill__teacher": "regnety_160,stem_width=8,widths=8:16,depth=1:1,group_width=8",
    "distill__teacher_weights": "random",
}


def test_a_teacher_sees_its_own_normalisation():
    c = config(**REGNET, distill__kind="hard", mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    c.model.num_classes = 10
    teacher = distillation.Teacher.of(c)
    values = teacher.load()
    pixels = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    for_student = jnp.array((pixels - np.float32(c.mean)) / np.float32(c.std))
    imagenet = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))
    for_teacher = jnp.array((pixels - imagenet[0]) / imagenet[1])
    expected = jax.jit(lambda v, x: teacher.skeleton.build(*v)(x)[0])(values, for_teacher)
    found = jax.jit(lambda v, x: teacher.look(v, x)[0])(values, for_student)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert float(jnp.abs(expected).max()) > 1e-3


def a_batch(run, seed=0):
    rng = np.random.default_rng(seed)
    c = run.config
    batch = {
        "image": rng.integers(0, 256, (c.batch_size, *2 * (c.model.image_size,), 3), np.uint8),
        "label": rng.integers(0, 10, c.batch_size, np.int32),
    }
    return sharding.put_batch(run.mesh, batch)


def take(run, *seeds):
    with jax.set_mesh(run.mesh):
        state, teacher = run.fresh_state(), run.load_teacher()
        for i, seed in enumerate(seeds):
            state = run.step_at(i)(state, a_batch(run, seed), teacher)
    return state


@functools.cache
def evo_levit(devices, **fields):
    c = config(
        "evo_levit_128s",
        **REGNET,
        model__depth=(1, 1, 1),
        reduction="evo,first_block=1",
        distill__kind="cls",
        optim__agc=0.01,
        **fields,
    )
    return build(c, jax.devices()[:devices])


@pytest.mark.slow
def test_the_step_learns_from_the_teacher_and_leaves_it_alone():
    run = evo_levit(8, warmup_steps=0)
    with jax.set_mesh(run.mesh):
        teacher, state = run.load_teacher(), run.fresh_state()
        before = jax.device_get(teacher)
        for _ in range(2):
            state = run.step_at(0)(state, a_batch(run), teacher)
    sums = state.meter["sums"]
    assert set(sums) == {"loss", "loss_cls", "loss_distill", "accuracy", "grad_norm"}
    assert int(state.meter["bad"]) == -1
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(teacher))
    of_teacher = {"stem/conv/kernel", "stages/0/0/conv1/conv/kernel"}
    assert of_teacher <= set(before[0])
    in_state = {getattr(k, "key", "") for path, _ in leaves(state) for k in path}
    assert not of_teacher & in_state


def leaves(state):
    return jax.tree_util.tree_flatten_with_path(state)[0]


@pytest.mark.slow
def test_eight_devices_have_the_batch_statistics_of_one():
    one, eight = (take(evo_levit(n), 0, 1) for n in (1, 8))
    assert {"patch_embed/convs/0/bn/mean", "head_dist/bn/var"} <= set(one.stats)
    moved = one.stats["patch_embed/convs/0/bn/mean"]
    assert float(jnp.abs(moved).max()) > 1e-3
    for name in one.stats:
        np.testing.assert_allclose(one.stats[name], eight.stats[name], rtol=1e-4, atol=1e-5)
    for name, value in one.meter["sums"].items():
        np.testing.assert_allclose(value, eight.meter["sums"][name], rtol=1e-3)


@pytest.mark.slow
def test_the_average_takes_in_the_statistics():
    run = evo_levit(8, ema__decay=0.5)
    state = take(run, 0)
    name = "patch_embed/convs/0/bn/mean"
    np.testing.assert_allclose(state.ema["stats"][name], state.stats[name] / 2, rtol=1e-5)


@pytest.mark.slow
def test_dynamicvit_learns_from_itself_unreduced():
    c = config(
        "deit_tiny_patch16_224",
        reduction="dynamicvit,keep_rate=0.7",
        distill__kind="self",
        loss__reducer_weights=(("ratio", 2.0), ("distill_.*", 0.5)),
        optim__freeze_rules=((r"reducer/.*", False), (r".*", True)),
        freeze_steps=1,
    )
    run = build(c, jax.devices()[:1])
    with jax.set_mesh(run.mesh):
        before = jax.device_get(run.fresh_state().params)
    first, second = take(run, 0), take(run, 0, 1)
    sums = {name: float(value) for name, value in first.meter["sums"].items()}
    names = {"loss_ratio", "loss_distill_logits", "loss_distill_tokens"}
    assert names <= set(sums)
    # The student begins as its teacher: only what it drops makes a difference.
    assert 0 < sums["loss_distill_tokens"] < 1
    kernel = "blocks/0/attn/qkv/kernel"
    np.testing.assert_array_equal(first.params[kernel], before[kernel])
    assert not np.array_equal(second.params[kernel], before[kernel])
    predictor = "reducer/score_predictor/0/embed/kernel"
    assert not np.array_equal(first.params[predictor], before[predictor])


def test_weights_that_lack_what_is_new(tmp_path):
    dense = evovit_jax.create_model(
        "deit_tiny_patch16_224", depth=4, embed_dim=24, image_size=32, patch_size=8, num_classes=10
    )
    path = str(tmp_path / "dense.pth")
    weights.save_weights(dense, path)
    fields = {"reduction": "dynamicvit", "distill__kind": "self", "init_weights": path}
    c = config("deit_tiny_patch16_224", **fields, distill__teacher_weights="")
    with pytest.raises(UserError, match=r"it lacks .*score_predictor"):
        build(c, jax.devices()[:1]).fresh_state()
    c.init_allow_missing = "reducer/.*"
    run = build(c, jax.devices()[:1])
    state = run.fresh_state()
    kernel = "blocks/3/mlp/fc1/kernel"
    np.testing.assert_array_equal(state.params[kernel], dense.blocks[3].mlp.fc1.kernel[...])
    np.testing.assert_array_equal(state.params[kernel], run.load_teacher()[0][kernel])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distill__kind": "sof"}, "did you mean 'soft'"),
        ({"distill__alpha": 1.5}, "distill.alpha=1.5"),
        ({"distill__tau": 0.0}, "distill.tau=0.0"),
        ({"distill__kind": "hard", "distill__teacher": ""}, "needs distill.teacher"),
        ({"distill__kind": "hard", **REGNET, "distill__teacher_weights": ""}, "teacher_weights"),
        ({"distill__kind": "self"}, "reduction 'none' has no losses of its own"),
        ({"distill__kind": "self", "reduction": "dynamicvit", **REGNET}, "leave teacher empty"),
    ],
)
def test_settings_that_cannot_be_used(fields, message):
    with pytest.raises(UserError, match=message):
        distillation.check(config("deit_tiny_patch16_224", **fields))
