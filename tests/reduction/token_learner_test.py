"""TokenLearner: what a token is a sum of, and what comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import normal, run_model

from evovit_jax.errors import UserError
from evovit_jax.reduction import create_reducer
from evovit_jax.reduction.base import Backbone
from evovit_jax.reduction.token_learner import Learner, TokenLearnerFields
from evovit_jax.reduction.tokens import start_tokens

X = normal(2, 12, 6)
BACKBONE = Backbone(4, (6,), (3,), (3, 4), 1, (4,))


def learner(**fields):
    return Learner(6, TokenLearnerFields(num_tokens=2, **fields), rngs=nnx.Rngs(0))


def taught(module, mean):
    return jax.device_get(run_model(module, X, grid=(3, 4), mean=mean))


def made(spec):
    return create_reducer(f"tokenlearner,num_tokens=2{spec}", BACKBONE, rngs=nnx.Rngs(0))


def test_version_1_1_sums_patches_by_weights_that_sum_to_one():
    learned, weights = taught(learner(), mean=False)
    np.testing.assert_allclose(weights.sum(axis=2), 1, atol=1e-6)
    np.testing.assert_allclose(learned, np.einsum("bsp,bpd->bsd", weights, X), atol=1e-5)


def test_version_1_0_weighs_by_a_sigmoid_and_may_take_the_mean():
    module = learner(version="1.0")
    module.convs[-1].kernel[...] = jnp.zeros((3, 3, 2, 2))  # a sigmoid of zero is a half
    learned, weights = taught(module, mean=False)
    np.testing.assert_allclose(weights, np.full((2, 2, 12), 0.5))
    np.testing.assert_allclose(learned[:, 0], X.sum(axis=1) / 2, atol=1e-5)
    np.testing.assert_allclose(taught(module, mean=True)[0], learned / 12, atol=1e-6)


def test_class_tokens_go_round_and_patches_come_back_with_a_fuser():
    method = made(",fuse=true,locations=2")
    x = jnp.asarray(normal(2, 13, 6, seed=1))
    tokens = start_tokens(x, prefix=1, grid=(3, 4))
    assert method.before_block(1, tokens).x.shape == (2, 13, 6)
    few = jax.jit(lambda tokens: method.before_block(2, tokens))(tokens)
    assert few.x.shape == (2, 1 + 2, 6)
    np.testing.assert_array_equal(few.x[:, 0], x[:, 0])
    assert set(np.unique(few.source[:, 1:])) <= {1, 2}
    few = few.replace(x=few.x.at[:, 0].set(7.0))  # what the block makes of the class token
    whole = jax.jit(lambda few: method.after_block(2, few))(few)
    np.testing.assert_array_equal(whole.source, tokens.source)
    np.testing.assert_array_equal(whole.x[:, 0], np.full((2, 6), 7.0))
    # A new fuser mixes by zeros: its second norm has nothing to spread.
    np.testing.assert_allclose(whole.x[:, 1:], x[:, 1:], atol=1e-5)
    assert "whole" not in whole.aside


def test_what_it_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"version must be one of 1\.0, 1\.1, got '2\.0'"):
        made(",version=2.0")
    with pytest.raises(UserError, match="tokenlearner has one location, got 1:2"):
        made(",locations=1:2")
    with pytest.raises(UserError, match="num_tokens 13 is more than the 12 patches"):
        create_reducer("tokenlearner,num_tokens=13", BACKBONE, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="num_tokens and bottleneck_dim must be 1 or more"):
        made(",bottleneck_dim=0")
