"""ConvNeXt: maps of any size, what it refuses, gradients of all of its parameters.

That it computes what timm computes is in parity_test.py.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import filled, run_model, shapes_of
from tiny_sizes import CONVNEXT

import evovit_jax
from evovit_jax.errors import UserError
from evovit_jax.reduction import token_counts


def tiny(reduction=None, **overrides):
    return filled("convnext_tiny", reduction, **{**CONVNEXT, "num_classes": 5, **overrides})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_makes_no_whole_patch_or_cell_is_lost(dtype):
    logits, out = shapes_of(tiny(dtype=dtype), 2, 15, 26, 3)
    assert (logits.shape, logits.dtype) == ((2, 5), jnp.float32)
    assert {x.dtype for x in (out["features"], *out["aux"].values())} == {jnp.dtype(dtype)}
    assert out["aux"]["stage0"].shape == (2, 7, 13, 6)
    assert out["aux"]["stage1"].shape == (2, 3, 6, 8)
    assert out["features"].shape == (2, 18, 8)
    assert (out["pooled"].shape, out["pooled"].dtype) == ((2, 8), jnp.float32)
    counts = token_counts.count(tiny().reducer, (7, 13))
    assert [count.feed_forward for count in counts] == [91, 18, 18, 18, 18]


def test_dense_values_are_those_of_the_cells():
    images = np.random.default_rng(0).normal(size=(2, 10, 14, 3)).astype(np.float32)
    _, out = run_model(tiny(depth=(1, 1)), jnp.asarray(images))
    cells = np.asarray(out.features).reshape(2, 2, 3, 8)
    wide = np.asarray(out.dense())
    assert wide.shape == (2, 5, 7, 8)
    np.testing.assert_array_equal(wide[:, :4, :6], cells.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_array_equal(wide[:, 4, :6], wide[:, 3, :6])  # lost: the nearest there is
    lost = np.asarray(out.dense(dropped="zero"))
    assert not lost[:, 4].any()
    assert not lost[:, :, 6].any()


@pytest.mark.parametrize("method", ["tome", "evit", "evo", "topk", "dpcknn", "shift"])
def test_what_takes_tokens_out_of_their_places_is_refused(method):
    with pytest.raises(UserError, match="the depthwise convolutions in its blocks need a token"):
        tiny(method)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
        ({"kernel_size": 0}, "kernel_size must be a whole number from 1, got 0"),
        ({"depth": (1, 1, 1)}, "embed_dim and depth must have one member for each stage"),
        ({"activation": "relu"}, "activation must be one of"),
        ({"image_size": 1}, "an image of 1x1 pixels is smaller than a patch of 2"),
    ],
)
def test_bad_settings_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        tiny(**overrides)


def test_a_map_that_makes_no_cell_is_refused():
    with pytest.raises(UserError, match="a map of 1x9 tokens is too small: use larger images"):
        shapes_of(tiny(), 1, 3, 18, 3)


def test_a_name_without_a_tag_is_the_first_of_its_weights():
    entry = evovit_jax.models.model_entry("convnext_small")
    assert entry.weights == "hf://timm/convnext_small.fb_in1k"
