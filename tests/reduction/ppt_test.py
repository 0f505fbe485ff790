"""PPT's scores, and that each image of a batch takes its own way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import normal

from evovit_jax.reduction.base import AttentionView, Backbone
from evovit_jax.reduction.ppt import PPT, PPTFields, value_scores
from evovit_jax.reduction.tokens import group_sizes, start_tokens


def view(rows):
    """Class attention in two heads, and values all of one length."""
    b, n = rows.shape
    keys = jnp.asarray(normal(b, 2, n, 3, seed=1))
    values = jnp.full((b, 2, n, 3), 6**-0.5)
    return AttentionView(class_row=jnp.stack([rows, rows], axis=1), keys=keys, values=values)


def test_scores_are_shares_of_attention_times_length():
    scores = jax.jit(lambda rows: value_scores(view(rows), 1))
    np.testing.assert_allclose(
        scores(jnp.asarray([[0.4, 0.1, 0.2, 0.3]])), [[1 / 6, 2 / 6, 3 / 6]], rtol=1e-6
    )


def test_each_image_prunes_or_pools():
    rows = jnp.asarray([[0.1, 0.9, 0, 0, 0, 0, 0], [0.1] + [0.15] * 6])
    backbone = Backbone(2, (2,), (2,), (2, 3), 1, (2,))
    reducer = PPT(backbone, PPTFields(r=2, locations=0, threshold=0.01), rngs=nnx.Rngs(0))
    x = normal(2, 7, 2)

    @jax.jit
    def reduced(x, rows):
        started = start_tokens(x, prefix=1, grid=(2, 3))
        tokens = reducer.after_attention(0, started, view(rows))
        return tokens, reducer.aux(tokens), group_sizes(tokens.source, 5)

    tokens, aux, sizes = reduced(x, rows)
    assert aux["pooled"].tolist() == [[False], [True]]
    shares = np.array([1.0, 0, 0, 0, 0, 0])
    assert aux["variance"][0, 0] == pytest.approx(shares.var(ddof=1))
    assert tokens.x.shape == (2, 5, 2)
    np.testing.assert_array_equal(tokens.x[0], x[0, :5])  # ties by order
    assert (tokens.source[0] < 0).sum() == 2
    assert (tokens.source[1] >= 0).all()
    np.testing.assert_array_equal(tokens.sizes[1], sizes[1])
