"""SViTE's selection: who stays, masked and removed."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import normal

from evovit_jax.reduction.base import Backbone
from evovit_jax.reduction.svite import SViTE, SViTEFields
from evovit_jax.reduction.tokens import start_tokens


def started(**fields):
    method = SViTE(
        Backbone(2, (6,), (2,), (2, 4), 1, (2,)), SViTEFields(**fields), rngs=nnx.Rngs(0)
    )
    x = normal(3, 9, 6)

    @nnx.jit
    def start(method, x):
        return method.embed_score(x)[..., 0], method.start(start_tokens(x, prefix=1, grid=(2, 4)))

    scores, tokens = start(method, x)
    return method, x, np.asarray(scores), tokens


def test_masked_the_k_best_of_all_and_the_class_token_go_on():
    method, x, scores, tokens = started(masked=True, kept=4)
    for image in range(3):
        best = {0, *np.argsort(-scores[image])[:4].tolist()}
        mask = [float(i in best) for i in range(9)]
        np.testing.assert_array_equal(method.aux(tokens)["mask"][image], mask)
        np.testing.assert_array_equal(tokens.x[image], x[image] * np.array(mask)[:, None])
    edited = np.asarray(method.attention_request(1, tokens).edit(jnp.asarray(x)))
    assert ((np.abs(edited).sum(axis=-1) > 0).sum(axis=1) >= 4).all()
    assert (np.abs(edited).sum(axis=-1) > 0).sum() <= 3 * 5


def test_removed_the_best_patches_go_on_in_raster_order():
    _, x, scores, tokens = started(kept=4)
    for image in range(3):
        best = sorted((np.argsort(-scores[image, 1:])[:3] + 1).tolist())
        np.testing.assert_array_equal(tokens.x[image], x[image][[0, *best]])


@pytest.mark.parametrize(("fields", "count"), [({}, 177), ({"kept": 500}, 197), ({"kept": 9}, 9)])
def test_the_published_count(fields, count):
    assert SViTEFields(**fields).count(197) == count
