"""Reducing inside a stage of a pyramid, and the whole grid at its end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import normal

from evovit_jax.reduction.base import AttentionView, Backbone
from evovit_jax.reduction.evit import EViT, EViTFields
from evovit_jax.reduction.tokens import start_tokens
from evovit_jax.reduction.tome import ToMe, ToMeFields

PYRAMID = Backbone(4, (8, 8), (2, 2), (2, 4), 1, (3, 1), key_dim=4, stride=2)
X = normal(2, 9, 8)


def view(n, key):
    row = jax.nn.softmax(normal(2, 2, n, seed=key))
    return AttentionView(class_row=row, keys=jnp.asarray(normal(2, 2, n, 4, seed=key + 1)))


def through_stage(reducer):
    """A stage of three blocks that add 1, 10 and 100 to every token, and the sets on the way."""

    @jax.jit
    def run(x):
        tokens, sets = start_tokens(x, prefix=1, grid=(2, 4)), []
        for block, gain in enumerate((1.0, 10.0, 100.0)):
            tokens = reducer.after_attention(block, tokens, view(tokens.x.shape[1], block))
            tokens = tokens.replace(x=tokens.x + gain)
            sets.append(tokens)
            tokens = reducer.after_block(block, tokens)
        return tokens, sets

    return run(X)


def test_dropped_tokens_come_back_as_they_left():
    for fuse in (False, True):
        fields = EViTFields(keep_rate=0.5, fuse=fuse, locations=(1, 2))
        tokens, sets = through_stage(EViT(PYRAMID, fields, rngs=nnx.Rngs(0)))
        assert [s.x.shape[1] for s in sets] == [9, 5 + fuse, 3 + 2 * fuse]
        assert tokens.x.shape == X.shape
        np.testing.assert_array_equal(tokens.source, sets[0].source)
        gained = np.round((np.asarray(tokens.x) - X)[:, :, 0]).astype(int)
        # Out at block 1: gained 1; at block 2: 11; never: 111.
        assert set(gained.ravel().tolist()) <= {1, 11, 111}
        for b in range(2):
            held = np.asarray(sets[2].source[b])
            alone = [j for j in range(9) if held[j] >= 0 and (held == held[j]).sum() == 1]
            assert 0 in alone
            assert (gained[b, alone] == 111).all() or fuse
            assert (gained[b] == 1).sum() == 4
            np.testing.assert_allclose(
                tokens.x[b], X[b] + gained[b][:, None].astype(np.float32), atol=1e-4
            )


@pytest.mark.slow
def test_merged_tokens_share_their_value_again():
    reducer = ToMe(PYRAMID, ToMeFields(r=(0, 3, 0, 0)), rngs=nnx.Rngs(0))
    tokens, sets = through_stage(reducer)
    assert sets[1].x.shape[1] == 6
    assert tokens.x.shape == X.shape
    assert tokens.sizes is None
    for b in range(2):
        held = np.asarray(sets[2].source[b])
        for place in range(6):
            members = np.flatnonzero(held == place)
            want = X[b, members].mean(axis=0) + 111
            np.testing.assert_allclose(tokens.x[b, members], np.tile(want, (len(members), 1)))


def test_the_last_stage_ends_reduced():
    reducer = EViT(PYRAMID, EViTFields(keep_rate=0.5, locations=(3,)), rngs=nnx.Rngs(0))

    def last_stage(x):
        tokens = start_tokens(x, prefix=1, grid=(1, 2))
        return reducer.after_block(3, reducer.after_attention(3, tokens, view(3, 0)))

    tokens = jax.jit(last_stage)(X[:, :3])
    assert tokens.x.shape[1] == 1 + 1 + 1
    assert tokens.aside == {}
