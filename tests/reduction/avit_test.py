"""A-ViT's halting against the paper's sums, token by token, and its losses."""

import jax
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from evovit_jax.errors import UserError
from evovit_jax.reduction.avit import AViT, AViTFields, gaussian
from evovit_jax.reduction.base import Backbone
from evovit_jax.reduction.tokens import start_tokens

DEPTH, FIELDS = 4, AViTFields(scale=2.0, centre=1.0)
BACKBONE = Backbone(DEPTH, (3,), (1,), (2, 3), 1, (DEPTH,))


def by_the_paper(states):
    """What one token becomes, its blocks and remainder, and the block in which it halts."""
    scores = 1 / (1 + np.exp(-(2 * states[:, 0] - 1)))
    scores[-1] = 1
    halts = next(n for n in range(DEPTH) if scores[: n + 1].sum() > 0.99 or n == DEPTH - 1)
    rest = 1 - scores[:halts].sum()
    weights = [*scores[:halts], rest]
    return sum(w * x for w, x in zip(weights, states, strict=False)), halts + 1 + rest, halts


def test_a_token_is_the_mean_of_what_it_was_until_it_halts():
    made = jax.random.normal(jax.random.key(0), (DEPTH, 2, 7, 3))  # what each block makes
    reducer = AViT(BACKBONE, FIELDS, rngs=nnx.Rngs(0))

    @jax.jit
    def passed(made):
        tokens = reducer.start(start_tokens(made[0], prefix=1, grid=(2, 3), train=True))
        biases = []
        for block in range(DEPTH):
            tokens = reducer.before_block(block, tokens)
            biases.append(reducer.attention_request(block, tokens).bias)
            tokens = reducer.after_block(block, tokens.replace(x=made[block]))
        return reducer.finish(tokens), biases[1:], reducer.losses(tokens)

    tokens, biases, losses = passed(made)
    states, depths, halted = np.asarray(made, np.float64), [], set()
    for image, token in np.ndindex(2, 7):
        x, blocks, halts = by_the_paper(states[:, image, token])
        np.testing.assert_allclose(tokens.x[image, token], x, atol=1e-5)
        hidden = [bias[image, 0, 0, token] < 0 for bias in biases]
        assert hidden == [block > halts for block in range(1, DEPTH)]
        assert tokens.source[image, token] == (
            token if halts == DEPTH - 1 or token == 0 else -(halts + 1)
        )
        depths.append(blocks)
        halted.add(halts)
    assert len(halted) > 2
    assert tokens.mask is None
    np.testing.assert_allclose(losses["ponder"], np.mean(depths), rtol=1e-5)
    scores = 1 / (1 + np.exp(-(2 * states[..., 0] - 1)))
    shares = scores.mean(axis=(1, 2)) / scores.mean(axis=(1, 2)).sum()
    wanted = gaussian(DEPTH, 2)
    assert losses["prior"] == pytest.approx(
        (wanted * np.log(wanted / shares)).sum() / DEPTH, rel=1e-4
    )


def test_the_prior_is_a_gaussian():
    density = stats.norm.pdf(np.arange(12), loc=8)
    np.testing.assert_allclose(gaussian(12, 8), density * 0.98 / density[:8].sum(), rtol=1e-6)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"avit epsilon must be in \(0, 1\), got 1.0"):
        AViTFields(epsilon=1.0)
    with pytest.raises(UserError, match=r"avit prior_depth must be in 1..4, got 5"):
        AViTFields(prior_depth=5).check(BACKBONE)
