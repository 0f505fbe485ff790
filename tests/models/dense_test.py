"""`Outputs.dense`: a value for every patch, whatever was merged or dropped on the way.

Also tests evovit_jax/reduction/dense.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import filled, run_model, some_slow

from evovit_jax.errors import UserError
from evovit_jax.models import Outputs
from evovit_jax.reduction.dense import on_grid

TINY = {"image_size": 20, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
PROBE = jax.random.normal(jax.random.key(5), (24, 4))


def passed(reduction, name="vit_small_patch14_reg4_dinov2", **sizes):
    model = filled(name, reduction, **{**TINY, **sizes})
    images = jax.random.normal(jax.random.key(1), (2, 16, 24, 3))
    return model, run_model(model, images)[1]


def test_without_a_reduction_a_segmentation_map_keeps_its_values():
    model, out = passed("none")
    probed = out.dense(out.features @ PROBE)
    assert probed.shape == (2, 4, 6, 4)
    expected = (out.features[:, model.prefix :] @ PROBE).reshape(2, 4, 6, 4)
    np.testing.assert_array_equal(probed, expected)


@pytest.mark.parametrize(
    "reduction", some_slow(["tome,r=4", "evit,keep_rate=0.5,locations=1:"], {"tome,r=4"})
)
def test_a_segmentation_map_keeps_its_shape_under_a_reduction(reduction):
    model, out = passed(reduction)
    assert out.features.shape[1] < model.prefix + 24
    probed = out.dense(out.features @ PROBE)
    assert probed.shape == (2, 4, 6, 4)
    # A probe of each token and the map of the probed tokens are the same.
    np.testing.assert_allclose(probed, out.dense() @ PROBE, atol=1e-4)
    source = np.asarray(out.token_maps[-1])
    for image, patch in np.ndindex(2, 24):
        token = source[image, model.prefix + patch]
        np.testing.assert_array_equal(
            out.dense()[image].reshape(24, -1)[patch], out.features[image, token]
        )


def test_a_dropped_patch_has_the_value_of_the_nearest_that_is_left():
    x = jnp.array([[[10.0], [11.0], [12.0]]])
    # A grid of 2 x 3: the second patch of the first row and the last of the second are left.
    source = jnp.array([[-1, 1, -1, -2, -1, 2]], jnp.int32)
    nearest = on_grid(x, source, grid=(2, 3))[0, :, :, 0]
    # The third patch is as far from both: the first of them in raster order.
    np.testing.assert_array_equal(nearest, [[11, 11, 11], [11, 11, 12]])
    zero = on_grid(x, source, grid=(2, 3), dropped="zero")[0, :, :, 0]
    np.testing.assert_array_equal(zero, [[0, 11, 0], [0, 0, 12]])


def test_pruning_leaves_no_hole():
    model, out = passed("topk,keep_rate=0.5,locations=1:")
    source = np.asarray(out.token_maps[-1][:, model.prefix :])
    assert (source < 0).sum() == 24
    filled, holes = (np.asarray(out.dense(dropped=rule)) for rule in ("nearest", "zero"))
    empty = (holes == 0).all(axis=-1).reshape(2, 24)
    np.testing.assert_array_equal(empty, source < 0)
    assert (np.abs(filled).sum(axis=-1) > 0).all()
    held = ~empty.reshape(2, 4, 6)
    np.testing.assert_array_equal(filled[held], holes[held])


@pytest.mark.slow
def test_in_a_pyramid_a_cells_patches_have_its_tokens_value():
    sizes = {"image_size": 64, "embed_dim": (16, 24), "num_heads": (2, 2), "depth": (1, 2)}
    model = filled("evo_levit_128s", "tome,r=1", key_dim=8, num_classes=3, **sizes)
    out = run_model(model, jnp.ones((1, 64, 64, 3)))[1]
    dense = out.dense()
    assert dense.shape == (1, 4, 4, 24)
    np.testing.assert_array_equal(
        dense[:, :2, :2], jnp.broadcast_to(dense[:, :1, :1], (1, 2, 2, 24))
    )


def test_what_has_no_grid_says_so():
    with pytest.raises(UserError, match="no tokens on a grid"):
        Outputs(features=jnp.ones((1, 4, 2))).dense()
    source = (jnp.array([[0, 1, 2, 2]], jnp.int32),)
    out = Outputs(features=jnp.ones((1, 3, 2)), token_maps=source, grid=(2, 2))
    with pytest.raises(UserError, match="the finished set has"):
        out.dense(jnp.ones((1, 4, 4)))
    with pytest.raises(UserError, match="dropped must be one of"):
        out.dense(dropped="mean")
