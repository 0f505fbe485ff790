"""Swin Transformers: maps, sizes, gradients, tables of other windows, what is refused.

That it computes what timm computes is in parity_test.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import filled, gradients, run_model, shapes_of
from tiny_sizes import SWIN

from evovit_jax.errors import UserError
from evovit_jax.models import model_entry
from evovit_jax.weights import from_torch, to_torch

NAME = "swin_tiny_patch4_window7_224"


# Two of three blocks of the first stage have two paths.
SPLIT = {
    "reduction": "dynamicvit,stage=0,locations=1:2,keep_rate=0.7:0.4",
    "depth": (3, 1),
}


def tiny(**overrides):
    return filled(NAME, **{**SWIN, "num_classes": 5, **overrides})


def images(batch):
    return jax.random.normal(jax.random.key(0), (batch, 32, 32, 3))


def test_maps_of_every_stage_are_shown_for_images_of_any_size():
    logits, out = shapes_of(tiny(dtype="bfloat16"), 2, 52, 36, 3)
    assert (logits.shape, logits.dtype) == ((2, 5), jnp.float32)
    assert {x.dtype for x in (out["features"], *out["aux"].values())} == {jnp.dtype(jnp.bfloat16)}
    assert {name: x.shape for name, x in out["aux"].items()} == {
        "stage0": (2, 13, 9, 8),
        "stage1": (2, 7, 5, 16),  # an odd row and column are merged with zeros
    }
    assert out["features"].shape == (2, 35, 16)
    assert (out["pooled"].shape, out["pooled"].dtype) == ((2, 16), jnp.float32)


@pytest.mark.slow
def test_gradients_come_to_every_parameter_under_stochastic_depth():
    model = tiny(drop_path_rate=0.1, remat="full", **SPLIT)
    loss, found = gradients(model, images(3), key=jax.random.key(3))
    assert np.isfinite(loss)
    for name, value in found.items():
        assert np.isfinite(value).all(), name
        assert np.abs(value).max() > 0, name
    learned = {name.rpartition("/")[0] for name in found if name.startswith("reducer/")}
    assert {"reducer/fast_path/1/linear", "reducer/score_predictor/1/score/2"} <= learned


def test_two_images_have_a_slow_and_a_fast_path():
    logits, out = shapes_of(tiny(**SPLIT), 2, 40, 24, 3)
    assert logits.shape == (2, 5)
    assert out["aux"]["decisions"].shape == (2, 2, 60)
    assert out["features"].shape == (2, 15, 16)  # nothing has left


@pytest.mark.slow
def test_two_images_are_computed_as_in_a_larger_batch():
    model = tiny(**SPLIT)
    two, three = (run_model(model, images(3)[:batch]) for batch in (2, 3))
    decisions = [np.asarray(out.aux["decisions"]) for _, out in (two, three)]
    assert decisions[0].sum(axis=2).tolist() == [[44, 25], [44, 25]]
    assert (decisions[0][0] != decisions[0][1]).any()
    np.testing.assert_array_equal(decisions[0], decisions[1][:2])
    np.testing.assert_allclose(two[0], three[0][:2], atol=1e-5)


def test_windows_are_not_larger_than_the_maps_that_a_network_is_made_for():
    model = tiny(image_size=(32, 16), window_size=5)
    tables = [blocks[0].attn.relative_position_bias_table.shape[0] for blocks in model.stages]
    assert tables == [9 * 7, 7 * 3]  # maps of 8x4 and 4x2 places


@pytest.mark.slow
def test_a_table_of_another_window_is_interpolated():
    large, small = tiny(image_size=32, window_size=4), tiny(image_size=32, window_size=3)
    name = "layers.0.blocks.1.attn.relative_position_bias_table"
    linear = np.linspace(-1, 1, 49, dtype=np.float32)[:, None]
    from_torch(small, {**to_torch(large), name: linear})
    found = to_torch(small)[name].reshape(5, 5)
    assert np.abs(found[2, 2]) < 1e-6  # no difference stays no difference
    np.testing.assert_allclose(found, -found[::-1, ::-1], atol=1e-6)
    assert (np.diff(found, axis=0) > 0).all()
    assert (np.diff(found, axis=1) > 0).all()


def test_what_official_files_have_of_windows_is_left_out():
    model = tiny()
    tensors = to_torch(model, "swin")
    extra = {
        "layers.0.blocks.1.attn_mask": np.zeros((9, 9, 9), np.float32),
        "layers.0.blocks.0.attn.relative_position_index": np.zeros((9, 9), np.int64),
    }
    (note,) = from_torch(model, tensors | extra)
    assert all(name in note for name in extra)


def test_a_name_without_a_tag_is_timms_default():
    base = "swin_base_patch4_window7_224"
    assert model_entry(NAME) is model_entry(f"{NAME}.ms_in1k")
    assert model_entry(base) is model_entry(f"{base}.ms_in22k_ft_in1k")


def test_reductions_are_refused_with_the_reason():
    with pytest.raises(UserError, match="the windows of attention in its blocks need a token in"):
        tiny(reduction="tome,r=4")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_heads": (1, 5)}, "embed_dim 16 does not divide into num_heads 5"),
        ({"depth": (1,)}, "embed_dim, depth, num_heads must have one member for each stage"),
        ({"window_size": 0}, "window_size must be a whole number from 1"),
        ({"image_size": 30}, "an image of 30x30 pixels does not divide into patches of 4"),
    ],
)
def test_bad_settings_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        tiny(**overrides)


def test_images_that_do_not_divide_into_patches_are_refused():
    with pytest.raises(UserError, match="an image of 34x32 pixels does not divide into patches"):
        shapes_of(tiny(), 1, 34, 32, 3)
