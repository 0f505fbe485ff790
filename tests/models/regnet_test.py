"""RegNetY: its blocks, its statistics, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import run_model

import evovit_jax
from evovit_jax.errors import UserError
from evovit_jax.models.batch_norm import fuse

TINY = {
    "image_size": 32,
    "stem_width": 8,
    "widths": (8, 16),
    "depth": (1, 2),
    "group_width": 4,
    "num_classes": 5,
}


def tiny(**overrides):
    return evovit_jax.create_model("regnety_160", **{**TINY, **overrides}, seed=1)


def images():
    return jax.random.normal(jax.random.key(0), (2, 32, 32, 3))


def test_each_stage_halves_the_map_and_the_head_takes_its_mean():
    model = tiny()
    logits, out = run_model(model, images())
    assert out.features.shape == (2, 4 * 4, 16)
    np.testing.assert_allclose(logits, model.head(out.features.mean(axis=1)), atol=1e-6)


def test_a_new_block_passes_its_input_on():
    model = tiny()
    block = model.stages[1][1]  # its last scale starts at zero
    x = jax.random.normal(jax.random.key(1), (1, 4, 4, 16))
    np.testing.assert_allclose(block(x, train=False), jax.nn.relu(x), atol=1e-6)


def test_squeezed_channels_scale_the_map():
    squeeze = tiny().stages[0][0].se
    x = jax.random.normal(jax.random.key(2), (1, 3, 3, 8))
    ratio = np.array(squeeze(x) / x)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-5)
    assert ((ratio > 0) & (ratio < 1)).all()


def test_statistics_move_in_training_and_fold_for_inference():
    model = tiny()
    run_model(model, images(), train=True)
    assert int(model.stem.bn.count[...]) == 1
    found, want = (run_model(m, images())[0] for m in (fuse(model), model))
    np.testing.assert_allclose(found, want, atol=1e-4)


def test_it_has_nothing_to_reduce():
    with pytest.raises(UserError, match="no tokens to reduce"):
        evovit_jax.create_model("regnety_160", "evit", **TINY)
    with pytest.raises(UserError, match="no tokens to reduce"):
        tiny()(jnp.zeros((1, 32, 32, 3)), reduction={"keep_rate": 0.5})
    with pytest.raises(UserError, match="do not divide into groups of 3"):
        tiny(group_width=3)
