"""DTEM's relaxed choice and its soft merging, which is the hard one for clear-cut embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import filled, gradients, tiny_config

from evovit_jax.parallel import sharding
from evovit_jax.reduction import dtem
from evovit_jax.reduction.matching import bipartite, merge_by_size
from evovit_jax.reduction.tokens import start_tokens


def test_a_relaxed_choice_adds_up_and_takes_the_largest():
    scores = jnp.asarray([[0.9, 0.1, 0.85, -0.5, -0.9]])
    chosen = jax.jit(lambda scores: dtem.relaxed_choice(scores, 2))(scores)
    assert 1.5 < float(chosen.sum()) <= 2 + 1e-5
    assert sorted(np.argsort(-chosen[0])[:2].tolist()) == [0, 2]


def test_clear_cut_embeddings_merge_as_in_inference(monkeypatch):
    monkeypatch.setattr(dtem, "TEMPERATURE", 1e-3)
    monkeypatch.setattr(dtem, "LEAST", 0.0)

    @jax.jit
    def both(keys):
        x, metric = jax.random.normal(keys[0], (2, 9, 4)), jax.random.normal(keys[1], (2, 9, 6))
        tokens = start_tokens(x, prefix=1, grid=(2, 4))
        hard = merge_by_size(tokens, bipartite(metric, 2, 1))
        return dtem.merge_softly(tokens, metric, 2), hard

    soft, hard = both(jax.random.split(jax.random.key(2), 2))
    np.testing.assert_allclose(soft.x, hard.x, atol=1e-4)
    np.testing.assert_allclose(soft.sizes, hard.sizes, atol=1e-4)
    np.testing.assert_array_equal(soft.source, hard.source)


@pytest.mark.slow
def test_a_mesh_trains_where_every_second_token_leaves():
    small = {"image_size": 8, "patch_size": 2, "embed_dim": 12, "depth": 2, "num_heads": 3}
    model = filled("deit_tiny_patch16_224", "dtem,r=8", **small, num_classes=5)
    config = tiny_config(mesh__data=8)
    mesh = sharding.make_mesh(config, jax.devices())
    images = jax.device_put(jnp.ones((8, 8, 8, 3)), sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        loss, _ = gradients(model, images)
    assert bool(jnp.isfinite(loss))
