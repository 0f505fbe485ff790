"""DynamicViT: masked training and gathered inference are one network; its losses by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from both_platforms import on_both
from flax import nnx
from tiny import run_model

import evovit_jax
from evovit_jax.models.outputs import Outputs
from evovit_jax.reduction.dynamic_vit import Predictor, masked_softmax, patch_log_probs, sample
from evovit_jax.reduction.tokens import start_tokens

TINY = {"image_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2}


def tiny(spec="dynamicvit", name="deit_tiny_patch16_224", **overrides):
    return evovit_jax.create_model(name, spec, **{**TINY, "num_classes": 5, **overrides})


def images(batch=2):
    return jax.random.normal(jax.random.key(5), (batch, 16, 16, 3))


def loud(model):
    """The model with predictors that are sure of what they say."""
    for predictor in model.reducer.score_predictor:
        for layer in predictor.score:
            layer.kernel[...] = jax.random.normal(jax.random.key(1), layer.kernel.shape)
    return model


def test_masked_softmax_is_the_softmax_of_what_is_kept():
    logits = jax.random.normal(jax.random.key(0), (1, 2, 6, 6))
    kept = np.array([0, 1, 4])
    policy = jnp.zeros((1, 6)).at[:, kept].set(1.0)
    weights = masked_softmax(logits, policy)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    among = jax.nn.softmax(logits[:, :, kept][:, :, :, kept], axis=-1)
    np.testing.assert_allclose(weights[:, :, kept][:, :, :, kept], among, atol=1e-5)
    for i in (2, 3, 5):  # a dropped token attends to the kept ones and to itself
        others = [j for j in (2, 3, 5) if j != i]
        assert float(weights[0, :, i, i].min()) > 0.01
        assert float(weights[0, :, i, others].max()) < 1e-5


@pytest.mark.slow
def test_masked_and_gathered_passes_agree_where_they_keep_the_same_tokens():
    model, image = loud(tiny()), images(1)
    masked, out = run_model(model, image, train=True)
    kept = [int(k) for k in out.aux["decisions"][0].sum(axis=1)]
    assert 16 > kept[0] > kept[1] > kept[2] > 0
    shares = [k / n for k, n in zip(kept, [16, *kept], strict=False)]
    rates = tuple(share + 1e-4 for share in shares)
    gathered, reduced = run_model(model, image, reduction={"keep_rate": rates})
    assert reduced.features.shape[1] == 1 + kept[2]
    np.testing.assert_allclose(gathered, masked, atol=1e-4)
    left = np.flatnonzero(np.asarray(reduced.token_maps[-1][0]) >= 0)
    np.testing.assert_array_equal(left[1:] - 1, np.flatnonzero(out.aux["decisions"][0, 2]))
    np.testing.assert_array_equal(
        np.asarray(out.token_maps[-1] < 0), np.asarray(reduced.token_maps[-1] < 0)
    )


def test_decisions_come_from_the_key_alone():
    model = tiny()
    run = jax.jit(lambda key: model(images(), train=True, key=key)[1].aux["decisions"])
    first, again, other = (run(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert bool((first != other).any())
    assert set(np.unique(first)) == {0.0, 1.0}
    assert bool((first[:, 1:] <= first[:, :-1]).all())  # what is dropped stays dropped


def test_sampling_follows_the_probabilities_and_passes_the_gradient():
    probabilities = jnp.array([0.8, 0.2])
    log_probs = jnp.broadcast_to(jnp.log(probabilities), (20, 1000, 2))
    drawn = sample(log_probs, jax.random.key(0))
    np.testing.assert_allclose(drawn.mean(axis=(0, 1)), probabilities, atol=0.02)
    np.testing.assert_array_equal(sample(log_probs, None)[0, 0], [1.0, 0.0])
    slope = jax.grad(lambda x: sample(x, None)[0, 0, 0])(log_probs[:1, :1])
    np.testing.assert_allclose(slope[0, 0], [0.16, -0.16], atol=1e-6)


def test_ratio_loss_by_hand_and_its_gradient():
    model = tiny("dynamicvit,keep_rate=0.6")
    _, out = run_model(model, images(), train=True)
    decisions = np.asarray(out.aux["decisions"])
    assert decisions.shape == (2, 3, 16)
    want = np.mean((decisions.mean(axis=2) - np.array([0.6, 0.36, 0.216])) ** 2)
    np.testing.assert_allclose(out.losses["ratio"], want, rtol=1e-5)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def ratio(params):
        return nnx.merge(graphdef, params, rest)(images(), train=True)[1].losses["ratio"]

    slopes = jax.jit(jax.grad(ratio))(params)["reducer"]["score_predictor"]
    assert all(float(jnp.abs(slopes[i]["embed"]["kernel"][...]).max()) > 0 for i in range(3))


def outputs(key, decisions=None, patches=False):
    keys = jax.random.split(jax.random.key(key), 3)
    aux = {} if decisions is None else {"decisions": decisions}
    if patches:
        aux["patch_logits"] = jax.random.normal(keys[1], (2, 4, 3))
        aux["class_logits"] = jax.random.normal(keys[2], (2, 3))
    return Outputs(features=jax.random.normal(keys[0], (2, 5, 8)), aux=aux)


def divergence_by_hand(student, teacher):
    student, teacher = (np.exp(x) / np.exp(x).sum() for x in (student, teacher))
    return float((teacher * np.log(teacher / student)).sum())


def test_teacher_losses_by_hand():
    reducer = tiny().reducer
    decisions = jnp.array([[[1, 1, 1, 0], [0, 1, 1, 0]], [[1, 0, 1, 1], [1, 0, 0, 0]]], float)
    logits, wanted = (jax.random.normal(jax.random.key(k), (2, 3)) for k in (8, 9))
    out, teacher = outputs(1, decisions), outputs(2)
    losses = reducer.teacher_losses(logits, out, wanted, teacher)
    pairs = [divergence_by_hand(np.asarray(logits[b]), np.asarray(wanted[b])) for b in range(2)]
    np.testing.assert_allclose(losses["distill_logits"], np.mean(pairs), rtol=1e-5)
    kept = [(0, 1), (0, 2), (1, 0)]  # (image, patch) of the last decision
    squares = [np.mean((out.features[b, 1 + j] - teacher.features[b, 1 + j]) ** 2) for b, j in kept]
    np.testing.assert_allclose(losses["distill_tokens"], np.mean(squares), rtol=1e-5)

    out, teacher = outputs(1, decisions, patches=True), outputs(2, patches=True)
    losses = reducer.teacher_losses(logits, out, wanted, teacher)
    on_patches = [
        divergence_by_hand(
            *(np.asarray(o.aux["patch_logits"][b, j], np.float64) for o in (out, teacher))
        )
        for b, j in kept
    ]
    np.testing.assert_allclose(losses["distill_tokens"], np.mean(on_patches), rtol=1e-5)
    on_class = [
        divergence_by_hand(np.asarray(logits[b]), np.asarray(teacher.aux["class_logits"][b]))
        for b in range(2)
    ]
    np.testing.assert_allclose(losses["distill_logits"], np.mean(on_class), rtol=1e-5)


def test_nothing_kept_makes_no_token_loss():
    none = jnp.zeros((2, 3, 4))
    logits = jnp.zeros((2, 3))
    losses = tiny().reducer.teacher_losses(logits, outputs(1, none), logits, outputs(2))
    assert float(losses["distill_tokens"]) == 0


@pytest.mark.slow
def test_trains_on_lvvit_with_both_teacher_losses():
    student = evovit_jax.create_model(
        "lvvit_s", "dynamicvit", image_size=32, embed_dim=16, depth=4, num_heads=2, num_classes=5
    )
    image = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    logits, out = student(image, train=True, key=jax.random.key(1))
    teacher = evovit_jax.create_model(
        "lvvit_s", "none", image_size=32, embed_dim=16, depth=4, num_heads=2, num_classes=5
    )
    losses = student.reducer.teacher_losses(logits, out, *teacher(image))
    assert sorted(losses) == ["distill_logits", "distill_tokens"]
    assert all(bool(jnp.isfinite(v)) and float(v) > 0 for v in losses.values())


def test_predictor_reads_the_mean_of_what_is_kept_only():
    predictor = Predictor(8, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 6, 8))
    kept = jnp.array([[1.0, 1, 0, 1, 0, 0]])
    changed = x.at[0, 2].set(9.0)
    before, after = predictor(x, kept), predictor(changed, kept)
    others = np.array([0, 1, 3, 4, 5])
    np.testing.assert_allclose(before[0, others], after[0, others], atol=1e-6)
    nothing = predictor(x, jnp.zeros((1, 6)))
    assert bool(jnp.isfinite(nothing).all())  # chance may keep none


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_predictor_looks_at_no_class_token(dtype):
    predictor = Predictor(8, rngs=nnx.Rngs(0))
    for layer in (predictor.embed, *predictor.score):
        layer.kernel[...] = 40 * layer.kernel[...]
    x = jax.random.normal(jax.random.key(0), (2, 5, 8)).astype(dtype)
    kept = jnp.array([[1.0, 1, 0, 1], [0, 1, 1, 1]])

    def look(x):
        return patch_log_probs(predictor, start_tokens(x, prefix=1, grid=(2, 2)), kept)

    wanted = predictor(x[:, 1:], kept)
    assert float(jnp.ptp(wanted)) > 0.1
    for first in (x[:, 0], 9.0):
        for found in on_both(look, x.at[:, 0].set(first)):
            assert found.dtype == jnp.float32
            np.testing.assert_allclose(found, wanted, atol=1e-5 if dtype == "float32" else 0.05)


def test_a_distilled_students_heads_are_averaged_as_its_teachers_are():
    none = jnp.zeros((2, 3, 4))
    one, other = (jax.random.normal(jax.random.key(k), (2, 3)) for k in (8, 9))
    out = outputs(1, none)
    out = dataclasses.replace(out, aux_logits={"dist": other})
    losses = tiny().reducer.teacher_losses(one, out, (one + other) / 2, outputs(2))
    np.testing.assert_allclose(losses["distill_logits"], 0, atol=1e-6)
