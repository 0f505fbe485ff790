"""EViT: counts as the paper rounds, the fused token, the runtime keep rate."""

import jax
import numpy as np
import pytest
from flax import nnx
from tiny import normal

from evovit_jax.reduction import token_counts
from evovit_jax.reduction.base import AttentionView, Backbone
from evovit_jax.reduction.evit import EViT, EViTFields
from evovit_jax.reduction.tokens import start_tokens

DEIT_S = Backbone(12, (384,), (6,), (14, 14), 1, (12,))


def counts(**fields):
    reducer = EViT(DEIT_S, EViTFields(**fields), rngs=nnx.Rngs(0))
    return [count.feed_forward - 1 for count in token_counts.count(reducer, (14, 14))[3::3]]


def test_counts_are_the_published_ones():
    assert counts(keep_rate=0.7, fuse=True) == [139, 99, 71]
    assert counts(keep_rate=0.7, fuse=False) == [138, 97, 68]
    assert counts(keep_rate=0.7, fuse=False, rounding="grid") == [137, 96, 67]
    assert counts(keep_rate=0.5, fuse=False, rounding="grid") == [98, 49, 24]
    assert counts(keep_rate=(1.0, 0.5, 0.25), fuse=False) == [196, 98, 25]


@pytest.mark.parametrize("prefix", [1, 2])
def test_keeps_the_attentive_tokens_and_fuses_the_others(prefix):
    backbone = Backbone(4, (8,), (2,), (2, 3), prefix, (4,))
    reducer = EViT(backbone, EViTFields(keep_rate=0.5), rngs=nnx.Rngs(0))
    x = normal(2, prefix + 6, 8)
    row = np.random.default_rng(1).dirichlet(np.ones(prefix + 6), (2, 2)).astype(np.float32)

    @jax.jit
    def reduced(x, row):
        tokens = start_tokens(x, prefix=prefix, grid=(2, 3))
        return reducer.after_attention(1, tokens, AttentionView(class_row=row))

    after = reduced(x, row)
    sources = np.asarray(after.source)
    assert after.x.shape == (2, prefix + 3 + 1, 8)
    for b in range(2):
        scores = row[b, :, prefix:].mean(axis=0)
        order = np.argsort(-scores)
        kept, left = order[:3], order[3:]
        fused = sum(scores[j] * x[b, prefix + j] for j in left)
        np.testing.assert_array_equal(after.x[b, prefix : prefix + 3], x[b, prefix + kept])
        np.testing.assert_allclose(after.x[b, -1], fused, atol=1e-6)
        places = sources[b, prefix:]
        np.testing.assert_array_equal(places[kept], prefix + np.arange(3))
        np.testing.assert_array_equal(places[left], prefix + 3)
    np.testing.assert_array_equal(after.x[:, :prefix], x[:, :prefix])


def test_keep_rate_changes_for_a_call():
    reducer = EViT(DEIT_S, EViTFields(), rngs=nnx.Rngs(0))
    softer = reducer.override(keep_rate=0.9)
    assert token_counts.count(softer, (14, 14))[3].feed_forward == 1 + 177 + 1
    assert token_counts.count(reducer, (14, 14))[3].feed_forward == 1 + 138 + 1
    whole = reducer.override(keep_rate=1.0)
    assert {count.feed_forward for count in token_counts.count(whole, (14, 14))} == {197}
