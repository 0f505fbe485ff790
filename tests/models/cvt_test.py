"""CvT: its statistics, its class token, and sizes that the golden file does not have.

That it computes what the official code computes is in parity_test.py; what it shares with PVT v2 is
tested in pvt_v2_test.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import filled, run_model, shapes_of
from tiny_sizes import CVT

from evovit_jax.errors import UserError
from evovit_jax.models.batch_norm import fuse
from evovit_jax.models.variables import Skeleton, variables

TINY = {**CVT, "image_size": 32, "num_classes": 5}


def tiny(**overrides):
    return filled("cvt_13", **{**TINY, **overrides})


def images(*shape):
    return jax.random.normal(jax.random.key(0), (*shape, 3))


def trained(model, batch, **settings):
    """((loss, new statistics), gradients) of a training pass, by name."""
    skeleton = Skeleton(model)
    params, stats = Skeleton.variables(model)

    def loss(params):
        model = skeleton.build(params, stats)
        logits, _ = model(batch, train=True, **settings)
        return jnp.square(logits).sum(), Skeleton.variables(model)[1]

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.slow
def test_a_training_pass_moves_every_statistic_and_reaches_every_parameter():
    # With a class token in the last stage, its last block's other queries have no effect.
    model = tiny(remat="dots", drop_path_rate=0.1, class_token=(True, False))
    before = Skeleton.variables(model)[1]
    (loss, after), found = trained(model, images(3, 32, 32), key=jax.random.key(5))
    assert np.isfinite(loss)
    for name, value in after.items():
        assert not np.array_equal(value, before[name]), name
    for name, value in found.items():
        assert np.isfinite(value).all(), name
        # What moves all keys alike softmax does not see.
        assert np.abs(value).max() > 0 or name.endswith(("k/bias", "k/bn/bias")), name


@pytest.mark.slow
def test_rematerialisation_changes_memory_only():
    batch = images(2, 32, 32)
    (loss, stats), found = trained(tiny(), batch)
    (again, again_stats), others = trained(tiny(remat="full"), batch)
    np.testing.assert_allclose(again, loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-5), stats, again_stats)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-4), found, others)


@pytest.mark.slow
def test_folded_batch_norm_gives_the_same_logits():
    model = tiny(class_token=(True, False))
    batch = images(2, 40, 28)
    logits, out = run_model(model, batch)
    folded = fuse(model)
    np.testing.assert_allclose(run_model(folded, batch)[0], logits, atol=1e-5)
    assert not any("/bn/" in path for path in variables(folded))
    # Without a class token in the last stage the head takes the mean of its patches.
    np.testing.assert_allclose(out.pooled, out.features.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(logits, model.head(out.pooled), atol=1e-5)


def test_maps_leave_the_class_token_out():
    _, out = shapes_of(tiny(), 2, 50, 33, 3)
    # 7 pixels of padded images, every 4; then every other place.
    assert {name: x.shape for name, x in out["aux"].items()} == {
        "stage0": (2, 12, 8, 8),
        "stage1": (2, 6, 4, 12),
    }
    assert out["features"].shape == (2, 1 + 6 * 4, 12)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"patch_stride": (4, 2, 2)}, "patch_size, patch_stride, .* must have one member for each"),
        ({"qkv_kernel": 4}, "qkv_kernel must be odd, got 4"),
        ({"kv_stride": 0}, "kv_stride must be a whole number from 1, got 0"),
    ],
)
def test_bad_settings_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        tiny(**overrides)


def test_images_that_leave_no_patch_are_refused():
    with pytest.raises(UserError, match="a map of 2x32 is too small: use larger images"):
        shapes_of(tiny(), 1, 2, 32, 3)
