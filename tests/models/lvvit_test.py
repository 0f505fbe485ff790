"""LV-ViT's own parts; that it computes what its official code computes is in parity_test.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import run_model

import evovit_jax
from evovit_jax.errors import UserError
from evovit_jax.reduction.tokens import start_tokens

TINY = {"image_size": 64, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 5}


def tiny(reduction=None, **overrides):
    return evovit_jax.create_model("lvvit_s", reduction, **{**TINY, **overrides}, seed=1)


def images():
    return jax.random.normal(jax.random.key(0), (2, 64, 64, 3))


def test_inference_adds_half_of_the_largest_patch_logits():
    logits, out = run_model(tiny(), images())
    patches = out.aux["patch_logits"]
    assert patches.shape == (2, 16, 5)
    np.testing.assert_allclose(logits, out.aux["class_logits"] + 0.5 * patches.max(1), atol=1e-6)


def test_training_returns_the_class_logits_and_updates_the_stem():
    model = tiny()
    logits, out = run_model(model, images(), train=True)
    np.testing.assert_array_equal(logits, out.aux["class_logits"])
    assert int(model.patch_embed.convs[0].bn.count[...]) == 1


def test_masked_patches_have_no_say():
    model = tiny("heuristic,keep_rate=0.5,masked=true,locations=1:")
    logits, out = run_model(model, images())
    kept = np.array(out.token_maps[-1])[:, 1:] >= 0
    assert 0 < kept[0].sum() < 16
    patches = np.where(kept[:, :, None], out.aux["patch_logits"], -np.inf)
    np.testing.assert_allclose(logits, out.aux["class_logits"] + 0.5 * patches.max(1), atol=1e-6)


def test_other_image_sizes_work():
    logits, _ = run_model(tiny(), jnp.zeros((1, 96, 64, 3)))
    assert bool(jnp.isfinite(logits).all())


def test_what_it_cannot_be_is_refused():
    with pytest.raises(UserError, match="patch_size of an LV-ViT is 16, got 8"):
        tiny(patch_size=8)
    with pytest.raises(UserError, match="does not divide into patches of 16"):
        tiny()(jnp.zeros((1, 60, 64, 3)))


def test_an_image_without_patches_is_classified_by_its_class_token():
    model = evovit_jax.create_model(
        "lvvit_s", "none", image_size=32, embed_dim=16, depth=1, num_heads=2, num_classes=5
    )
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    mask = jnp.array([[True] * 5, [True] + [False] * 4])
    logits, out = model.classify(start_tokens(x, prefix=1, grid=(2, 2)).replace(mask=mask))
    np.testing.assert_array_equal(logits[1], out.aux["class_logits"][1])
    assert not np.array_equal(logits[0], out.aux["class_logits"][0])
