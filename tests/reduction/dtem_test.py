"""DTEM's relaxed choice and its soft merging, which is the hard one for clear-cut embeddings."""

import jax
import jax.numpy as jnp
import numpy as np

from evovit_jax.reduction import dtem
from evovit_jax.reduction.matching import bipartite, merge_by_size
from evovit_jax.reduction.tokens import start_tokens


def test_a_relaxed_choice_adds_up_and_takes_the_largest():
    scores = jnp.asarray([[0.9, 0.1, 0.85, -0.5, -0.9]])
    chosen = dtem.relaxed_choice(scores, 2)
    assert 1.5 < float(chosen.sum()) <= 2 + 1e-5
    assert sorted(np.argsort(-chosen[0])[:2].tolist()) == [0, 2]


def test_clear_cut_embeddings_merge_as_in_inference(monkeypatch):
    monkeypatch.setattr(dtem, "TEMPERATURE", 1e-3)
    monkeypatch.setattr(dtem, "LEAST", 0.0)
    keys = jax.random.split(jax.random.key(2), 2)
    x, metric = jax.random.normal(keys[0], (2, 9, 4)), jax.random.normal(keys[1], (2, 9, 6))
    tokens = start_tokens(x, prefix=1, grid=(2, 4))
    soft, hard = (
        dtem.merge_softly(tokens, metric, 2),
        merge_by_size(tokens, bipartite(metric, 2, 1)),
    )
    np.testing.assert_allclose(soft.x, hard.x, atol=1e-4)
    np.testing.assert_allclose(soft.sizes, hard.sizes, atol=1e-4)
    np.testing.assert_array_equal(soft.source, hard.source)
