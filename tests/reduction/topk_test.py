"""Top-K against a loop over tokens."""

import jax
import numpy as np
from flax import nnx

from evovit_jax.reduction import Backbone, create_reducer
from evovit_jax.reduction.base import AttentionView
from evovit_jax.reduction.tokens import start_tokens


def test_keeps_the_tokens_of_the_largest_class_attention_and_drops_the_others():
    backbone = Backbone(4, (8,), (2,), (2, 3), 1, (4,))
    reducer = create_reducer("topk,keep_rate=0.5", backbone, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 7, 8))
    row = jax.nn.softmax(jax.random.normal(jax.random.key(1), (2, 2, 7)))
    tokens = start_tokens(x, prefix=1, grid=(2, 3))
    assert reducer.attention_request(0, tokens).needs == set()
    assert reducer.attention_request(1, tokens).needs == {"class_row"}
    after = reducer.after_attention(1, tokens, AttentionView(class_row=row))
    for b in range(2):
        order = np.argsort(-np.asarray(row[b, :, 1:].mean(axis=0))) + 1
        np.testing.assert_array_equal(after.x[b], x[b, [0, *order[:3]]])
        np.testing.assert_array_equal(after.source[b, order], [1, 2, 3, -2, -2, -2])
