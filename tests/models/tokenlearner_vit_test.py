"""The ViT of TokenLearner: what it is made without; its outputs are parity_test.py's."""

import jax
import numpy as np
import pytest
from tiny import run_model

import evovit_jax
from evovit_jax.errors import UserError

TINY = {"image_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
NAME = "tokenlearner_vit_small_patch16_224"


@pytest.mark.slow
def test_the_mean_of_the_tokens_that_are_left_is_classified():
    model = evovit_jax.create_model(NAME, num_classes=5, **TINY)
    logits, out = run_model(model, jax.random.normal(jax.random.key(0), (2, 16, 16, 3)))
    assert out.features.shape == (2, 8, 12)
    np.testing.assert_allclose(logits, model.head(out.features.mean(axis=1)), atol=1e-5)


def test_it_has_no_class_token():
    with pytest.raises(UserError, match="this network has no class token"):
        evovit_jax.create_model(NAME, "evit", **TINY)
    with pytest.raises(UserError, match="distilled cannot be set: this network has no class"):
        evovit_jax.create_model(NAME, distilled=True, **TINY)
