"""PVT v2, and what all pyramids of maps do: their maps, gradients, sizes, what they refuse.

That it computes what the official code computes is in parity_test.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import filled, gradients, run_model, shapes_of

import evovit_jax
from evovit_jax.errors import UserError
from evovit_jax.models.pvt_v2 import adaptive_mean

TINY = {
    "image_size": 32,
    "embed_dim": (8, 12),
    "depth": (1, 2),
    "num_heads": (1, 2),
    "sr_ratios": (4, 1),
    "mlp_ratios": (2, 2),
    "num_classes": 5,
}


def tiny(**overrides):
    return filled("pvt_v2_b0", **{**TINY, **overrides})


def images(*shape):
    return jax.random.normal(jax.random.key(0), (*shape, 3))


@pytest.mark.parametrize(("linear", "dtype"), [(False, "float32"), (True, "bfloat16")])
def test_maps_of_every_stage_are_shown_for_images_of_any_size(linear, dtype):
    logits, out = shapes_of(tiny(linear=linear, dtype=dtype), 2, 50, 33, 3)
    assert (logits.shape, logits.dtype) == ((2, 5), jnp.float32)
    assert {x.dtype for x in (out["features"], *out["aux"].values())} == {jnp.dtype(dtype)}
    assert {name: x.shape for name, x in out["aux"].items()} == {
        "stage0": (2, 13, 9, 8),  # a place for every 4 pixels, rounded up
        "stage1": (2, 7, 5, 12),
    }
    assert out["features"].shape == (2, 35, 12)
    assert (out["pooled"].shape, out["pooled"].dtype) == ((2, 12), jnp.float32)
    assert out["token_maps"] == ()


@pytest.mark.slow
def test_gradients_come_to_every_parameter_under_stochastic_depth():
    model = tiny(linear=True, drop_path_rate=0.1)
    loss, found = gradients(model, images(3, 32, 32), key=jax.random.key(3))
    assert np.isfinite(loss)
    for name, value in found.items():
        assert np.isfinite(value).all(), name
        assert np.abs(value).max() > 0, name


@pytest.mark.slow
def test_rematerialisation_changes_memory_only():
    batch = images(2, 32, 32)
    loss, found = gradients(tiny(), batch)
    again, others = gradients(tiny(remat="full"), batch)
    np.testing.assert_allclose(again, loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-5), found, others)


@pytest.mark.slow
def test_drop_path_follows_the_key_in_training_only():
    model, batch = tiny(drop_path_rate=0.7), images(4, 32, 32)
    first, again, other = (
        run_model(model, batch, train=True, key=jax.random.key(k))[0] for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    still = run_model(model, batch, key=jax.random.key(1))[0]
    np.testing.assert_array_equal(still, run_model(model, batch)[0])


def by_hand(x, side):
    """Each bin from the place that holds its beginning to the one that holds its end."""
    out = np.zeros((len(x), side, side, x.shape[3]), np.float32)
    rows, columns = ((np.arange(n + 1) * n / n, n) for n in x.shape[1:3])
    for i in range(side):
        for j in range(side):
            places = x
            for axis, (edges, n), bin_ in ((1, rows, i), (2, columns, j)):
                begin, end = bin_ * n / side, (bin_ + 1) * n / side
                inside = (edges[1:] > begin) & (edges[:-1] < end)
                places = np.compress(inside, places, axis=axis)
            out[:, i, j] = places.mean(axis=(1, 2))
    return out


@pytest.mark.parametrize(("rows", "columns"), [(5, 14), (7, 17)])
def test_bins_overlap_where_they_do_not_divide_a_map(rows, columns):
    x = np.random.default_rng(0).normal(size=(2, rows, columns, 3)).astype(np.float32)
    found = jax.jit(adaptive_mean, static_argnums=1)(x, 7)
    np.testing.assert_allclose(found, by_hand(x, 7), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "reduction"), [("pvt_v2_b0", "evit,keep_rate=0.7"), ("cvt_13", {"name": "tome"})]
)
def test_reductions_are_refused_with_the_reason(name, reduction):
    with pytest.raises(
        UserError, match=r"'(evit|tome)' does not run in a .*the convolution .*grid"
    ):
        evovit_jax.create_model(name, reduction)


def test_none_is_a_reduction_whose_settings_cannot_change():
    model = tiny(reduction={"name": "none"})
    with pytest.raises(UserError, match=r"a PVTv2 reduces nothing, got \['keep_rate'\]"):
        model(images(1, 32, 32), reduction={"keep_rate": 0.5})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sr_ratios": (4, 2, 1)}, "embed_dim, depth, .*, mlp_ratios must have one member for"),
        ({"num_heads": (1, 5)}, "embed_dim 12 does not divide into num_heads 5"),
        ({"sr_ratios": (0, 1)}, "sr_ratios must be a whole number from 1"),
        ({"depth": 2}, "depth of pvt_v2_b0 is a list"),
    ],
)
def test_bad_settings_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        tiny(**overrides)


def test_images_that_leave_no_key_are_refused():
    with pytest.raises(UserError, match="a map of 3x8 tokens is smaller than sr_ratios 4"):
        shapes_of(tiny(), 1, 12, 32, 3)
