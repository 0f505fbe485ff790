"""The flat backbone: sizes, positions on other grids, stochastic depth, dtypes, kernels, remat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import some_slow

import evovit_jax
from evovit_jax import flops
from evovit_jax.errors import UserError
from evovit_jax.models.layers import mean_of_patches
from evovit_jax.models.lvvit import LVViT
from evovit_jax.models.positions import resize_positions
from evovit_jax.reduction.base import Reducer
from evovit_jax.reduction.stochastic_depth import drop_path
from evovit_jax.reduction.tokens import TokenSet, check_tokens, start_tokens

TINY = {
    "image_size": 16,
    "patch_size": 4,
    "embed_dim": 12,
    "depth": 3,
    "num_heads": 3,
    "num_classes": 5,
}


def tiny(name="deit_tiny_patch16_224", reduction=None, **overrides):
    return evovit_jax.create_model(name, reduction, **{**TINY, **overrides}, seed=1)


def images(batch=2, size=16):
    return jax.random.normal(jax.random.key(0), (batch, size, size, 3))


def run(model, batch, **settings):
    return jax.jit(lambda batch: model(batch, **settings))(batch)


def test_logits_are_float32_of_the_class_token():
    model = tiny()
    logits, out = run(model, images())
    assert logits.shape == (2, 5)
    assert logits.dtype == jnp.float32
    assert out.features.shape == (2, 17, 12)
    expected = model.head(out.features[:, 0])
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def macs(model, **settings):
    return flops.macs_of(lambda images: model(images, **settings)[0], images(1))


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("deit_tiny_patch16_224", 1),
        ("deit_tiny_distilled_patch16_224", 2),
        ("vit_small_patch14_reg4_dinov2.lvd142m", 5),
    ],
)
def test_the_last_block_computes_the_tokens_that_the_head_reads(name, reads):
    model = tiny(name)
    tokens, dim = 16 + model.prefix, 12
    assert model.read_tokens == reads
    # Of the others no query, no row of the map, no projection, no feed-forward.
    saved = (tokens - reads) * (2 * dim**2 + 2 * tokens * dim + 8 * dim**2)
    assert macs(model) - macs(model, logits_only=True) == saved
    assert macs(model, train=True) == macs(model, train=True, logits_only=True)


def test_a_head_that_reads_the_patches_gets_them_all():
    model = tiny(pool="avg")
    assert model.read_tokens is None
    assert macs(model) == macs(model, logits_only=True)
    assert LVViT.read_tokens is None


def test_patch_embedding_is_the_strided_convolution():
    model = tiny()
    kernel = model.patch_embed.proj.kernel[...].reshape(4, 4, 3, 12)
    expected = jax.lax.conv_general_dilated(
        images(), kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ).reshape(2, 16, 12)
    np.testing.assert_allclose(model.patch_embed(images()), expected, atol=1e-5)


@pytest.mark.parametrize("size", [8, 24, 32])
def test_other_image_sizes_interpolate_the_positions(size):
    logits, out = run(tiny(), images(size=size))
    assert out.features.shape[1] == 1 + (size // 4) ** 2
    assert bool(jnp.isfinite(logits).all())


def test_positions_interpolate_bicubically_and_keep_constants():
    constant = jnp.full((1, 9, 4), 2.5)
    np.testing.assert_allclose(resize_positions(constant, (3, 3), (5, 7)), 2.5, rtol=1e-6)
    ramp = jnp.broadcast_to(jnp.arange(6.0)[None, :, None], (6, 6, 1)).reshape(1, 36, 1)
    wider = resize_positions(ramp, (6, 6), (6, 12)).reshape(6, 12)
    # A cubic kernel reproduces a straight line away from the border.
    np.testing.assert_allclose(wider[2, 4:8], jnp.arange(1.75, 3.5, 0.5), atol=1e-5)


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 3))
    y = drop_path(x, 0.25, jax.random.key(0))
    values = np.unique(np.array(y[:, 0, 0]))
    np.testing.assert_allclose(values, [0, 1 / 0.75], rtol=1e-6)
    np.testing.assert_array_equal(y, jnp.broadcast_to(y[:, :1, :1], y.shape))
    assert abs(float(y.mean()) - 1) < 0.03
    np.testing.assert_array_equal(drop_path(x, 0.25, None), x)


def test_drop_path_changes_training_only_and_follows_the_key():
    model = tiny(drop_path_rate=0.9)
    still = run(model, images())[0]
    np.testing.assert_array_equal(still, run(model, images(), key=jax.random.key(1))[0])
    first, again, other = (
        run(model, images(), train=True, key=jax.random.key(k))[0] for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - other).max()) > 0


@pytest.mark.parametrize("remat", some_slow(["full", "dots"], {"full"}))
@pytest.mark.slow
def test_remat_changes_no_gradient(remat):
    def gradient(remat):
        model = tiny("evo_deit_tiny_patch16_224", remat=remat)
        graphdef, params = nnx.split(model)
        loss = lambda p: jnp.square(nnx.merge(graphdef, p)(images())[0]).sum()  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    for a, b in zip(*map(jax.tree.leaves, (gradient("none"), gradient(remat))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_bfloat16_computes_in_16_bits_and_stays_near():
    exact = run(tiny(), images())[0]
    logits, out = run(tiny(dtype="bfloat16"), images())
    assert (logits.dtype, out.features.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(logits, exact, atol=0.02)


def test_names_and_patterns():
    names = evovit_jax.list_models("evo_deit_*")
    assert "evo_deit_small_patch16_224" in names
    assert all(name.startswith("evo_deit_") for name in names)


def test_a_reducer_that_breaks_a_shape_is_caught_at_the_border():
    class Broken(Reducer):
        def before_block(self, block, tokens: TokenSet) -> TokenSet:
            return tokens.replace(x=tokens.x[:, :, :-1]) if block == 1 else tokens

    model = tiny()
    model.reducer = Broken(model.reducer.backbone, model.reducer.fields, rngs=nnx.Rngs(0))
    with pytest.raises(AssertionError, match=r"tokens\.x"):
        model(images())
    tokens = start_tokens(jnp.ones((1, 3, 2)), prefix=1, grid=(1, 2))
    assert check_tokens(tokens, dim=2, inputs=3) is tokens


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"embed_dim": 13}, "embed_dim 13 does not divide into num_heads 3"),
        ({"patch_size": 5}, "image_size 16 is not a multiple of patch_size 5"),
        ({"pool": "max"}, "pool must be one of"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"drop_path_rate": 1.0}, "drop_path_rate must be in"),
        ({"dept": 3}, "did you mean 'depth'"),
    ],
)
def test_bad_settings_say_what_is_wrong(overrides, message):
    with pytest.raises(UserError, match=message):
        tiny(**overrides)


def test_an_unknown_model_is_told_what_is_near():
    with pytest.raises(UserError, match="did you mean deit_tiny_patch16_224"):
        evovit_jax.create_model("deit_tiny_patch16_225")


def test_an_image_that_does_not_divide_into_patches_is_refused():
    with pytest.raises(UserError, match="18x18 pixels does not divide into patches of 4"):
        tiny()(images(size=18))


def test_the_mean_of_patches_that_are_all_masked_is_zero():
    tokens = start_tokens(jnp.ones((2, 5, 3)), prefix=1, grid=(2, 2))
    mask = jnp.array([[True] * 5, [True] + [False] * 4])
    np.testing.assert_array_equal(mean_of_patches(tokens.replace(mask=mask))[:, 0], [1.0, 0.0])
