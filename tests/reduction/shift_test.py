"""Representation shift drops what the feed-forward moved least."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from evovit_jax.reduction.at_locations import LocatedFields
from evovit_jax.reduction.base import AttentionView, Backbone
from evovit_jax.reduction.shift import Shift
from evovit_jax.reduction.tokens import start_tokens


@pytest.mark.parametrize("prefix", [0, 1])
def test_keeps_the_farthest_moved_in_raster_order(prefix):
    backbone = Backbone(2, (2,), (1,), (1, 5), prefix, (2,))
    reducer = Shift(backbone, LocatedFields(keep_rate=0.5, locations=0), rngs=nnx.Rngs(0))
    tokens = start_tokens(jnp.zeros((1, prefix + 5, 2)), prefix=prefix, grid=(1, 5))
    tokens = reducer.after_attention(0, tokens, AttentionView())
    moves = jnp.asarray([0.0] * prefix + [1.0, 5.0, 3.0, 4.0, 2.0])
    tokens = tokens.replace(x=tokens.x + moves[None, :, None] * jnp.asarray([[[0.6, 0.8]]]))
    after = reducer.after_block(0, tokens)
    lengths = np.linalg.norm(after.x[0], axis=-1)
    np.testing.assert_allclose(lengths, [0.0] * prefix + [5.0, 3.0, 4.0], atol=1e-6)
    assert after.source[0, prefix:].tolist() == [-1, prefix, prefix + 1, prefix + 2, -1]
    assert after.aside == {}
