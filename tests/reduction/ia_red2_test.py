"""IA-RED2's attention among kept tokens, and its loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import normal

from evovit_jax.errors import UserError
from evovit_jax.reduction import token_counts
from evovit_jax.reduction.base import Backbone
from evovit_jax.reduction.ia_red2 import IARED2, Decisions, IARED2Fields, among
from evovit_jax.reduction.tokens import start_tokens


def reducer(dim=12, **fields):
    return IARED2(
        Backbone(6, (dim,), (2,), (2, 4), 1, (6,)), IARED2Fields(**fields), rngs=nnx.Rngs(0)
    )


def test_dropped_tokens_neither_attend_nor_are_attended_to():
    weights = np.asarray(jax.jit(among)(normal(1, 2, 3, 3), np.array([[True, False, True]])))
    np.testing.assert_allclose(weights.sum(axis=-1), [[[1, 0, 1]] * 2], rtol=1e-6)
    np.testing.assert_array_equal(weights[..., 1], 0.0)


def test_groups_are_thirds_and_keep_a_budget():
    method = reducer(keep_rate=0.5)
    assert method.locations == (0, 2, 4)
    assert [c.attention - 1 for c in token_counts.count(method, (2, 4))] == [4, 4, 2, 2, 1, 1]


def test_masked_groups_after_the_curriculum_keep_what_was_kept():
    method = reducer(masked=True, curriculum_step=0)

    @nnx.jit
    def grouped(method, x):
        tokens = start_tokens(x, prefix=1, grid=(2, 4))
        for block in (0, 2, 4):
            tokens = method.before_block(block, tokens)
        return tokens, method.aux(tokens)

    tokens, aux = grouped(method, 20 * normal(2, 9, 12))
    policies = np.asarray(aux["policies"])
    np.testing.assert_array_equal(policies[:, 0], policies[:, 2])
    np.testing.assert_array_equal(
        np.asarray(tokens.x) == 0, (policies[:, 2] == 0)[..., None].repeat(12, 2)
    )
    np.testing.assert_allclose(aux["flops_share"], policies[:, 0].mean(axis=1), rtol=1e-6)


def test_the_loss_is_the_distance_from_the_budget():
    method = reducer(keep_rate=0.5, locations=(0, 3))
    p = jnp.concatenate([jnp.ones((1, 1)), jnp.full((1, 8), 0.75)], axis=1)
    decided = Decisions((p > 0, p > 0), (p, p))
    tokens = start_tokens(jnp.zeros((1, 9, 12)), prefix=1, grid=(2, 4)).put_aside(decisions=decided)
    want = ((0.75 - 0.5) ** 2 + (0.75 - 0.25) ** 2) / 2
    assert float(method.losses(tokens)["ratio"]) == pytest.approx(want)


def test_a_width_that_six_heads_do_not_divide_is_refused():
    with pytest.raises(UserError, match="6 heads divide"):
        reducer(dim=16)
