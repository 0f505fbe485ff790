"""The walk: the order of the hooks, what it checks, and how it subsamples."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from evovit_jax.reduction.base import AttentionView, Backbone, Fields, Reducer
from evovit_jax.reduction.tokens import start_tokens
from evovit_jax.reduction.walk import BlockTokens, subsampled, walk

TWO_STAGES = Backbone(3, (4, 6), (1, 1), (3, 4), 1, (1, 2), stride=3)


class Told(Reducer):
    """Writes down what it is called for; drops the last token in block 2."""

    not_in_pyramids = None

    def __init__(self, backbone):
        super().__init__(backbone, Fields(), rngs=nnx.Rngs(0))
        self.calls = nnx.data([])

    def start(self, tokens):
        self.calls.append("start")
        return tokens

    def before_block(self, block, tokens):
        self.calls.append(f"before {block}")
        return tokens

    def attention_request(self, block, tokens):
        self.calls.append(f"request {block}")
        return super().attention_request(block, tokens)

    def after_attention(self, block, tokens, attention):
        self.calls.append(f"attended {block}")
        return tokens.replace(x=tokens.x[:, :-1]) if block == 2 else tokens

    def after_block(self, block, tokens):
        self.calls.append(f"after {block}")
        return tokens

    def subsample_request(self, stage, tokens):
        self.calls.append(f"subsample request {stage}")
        return super().subsample_request(stage, tokens)

    def subsample(self, tokens, attention, stride, *, stage):
        self.calls.append(f"subsample {stage} by {stride}")
        return tokens

    def finish(self, tokens):
        self.calls.append("finish")
        return tokens


class Block:
    """Adds 1 in its attention and 10 in its feed-forward."""

    def attend(self, block, tokens, request):
        return tokens.replace(x=tokens.x + 1), AttentionView()

    def feed_forward(self, block, tokens):
        return tokens.replace(x=tokens.x + 10)


class Subsampling:
    """Tokens of width 6, `tokens` of them, to which its feed-forward adds 100."""

    def __init__(self, tokens):
        self.tokens = tokens

    def attend(self, tokens, request):
        return jnp.zeros((len(tokens.x), self.tokens, 6)), AttentionView()

    def feed_forward(self, tokens):
        return tokens.replace(x=tokens.x + 100)


def start(dim=4):
    return start_tokens(jnp.zeros((2, 13, dim)), prefix=1, grid=(3, 4))


def test_the_hooks_are_called_in_the_documented_order():
    reducer = Told(TWO_STAGES)
    walked = walk([[Block()], [Block(), Block()]], start(), reducer, [Subsampling(3)])
    blocks = [[f"before {i}", f"request {i}", f"attended {i}", f"after {i}"] for i in range(3)]
    between = ["subsample request 0", "subsample 0 by 3"]
    assert reducer.calls == ["start", *blocks[0], *between, *blocks[1], *blocks[2], "finish"]
    np.testing.assert_array_equal(walked.tokens.x, np.full((2, 2, 6), 122.0))
    assert walked.counts == (
        BlockTokens(13, 13, 13, 13),
        BlockTokens(3, 3, 3, 3),
        BlockTokens(3, 3, 2, 2),
    )
    assert len(walked.token_maps) == 4


def test_a_stage_of_another_size_than_the_stride_makes_is_refused():
    with pytest.raises(AssertionError):
        walk([[Block()], [Block(), Block()]], start(), Told(TWO_STAGES), [Subsampling(4)])


def test_tokens_of_another_width_are_refused():
    with pytest.raises(AssertionError, match=r"tokens\.x"):
        walk([[Block()]], start(dim=5), Told(TWO_STAGES))


@pytest.mark.parametrize(
    ("stride", "rows"),
    [
        (2, [[0], [1, 1, 2, 2, 3], [1, 1, 2, 2, 3], [4, 4, 5, 5, 6]]),
        (3, [[0], [1, 1, 1, 2, 2], [1, 1, 1, 2, 2], [1, 1, 1, 2, 2]]),
    ],
)
def test_subsampling_says_where_tokens_went(stride, rows):
    tokens = start_tokens(jnp.zeros((2, 16, 1)), prefix=1, grid=(3, 5))
    after = subsampled(tokens, jnp.zeros((2, 1 + max(rows[-1]), 1)), stride)
    assert after.grid == (-(-3 // stride), -(-5 // stride))
    np.testing.assert_array_equal(after.source[0], np.concatenate(rows))


def test_rows_and_columns_that_make_no_cell_may_be_lost():
    tokens = start_tokens(jnp.zeros((2, 15, 1)), prefix=0, grid=(3, 5))
    after = subsampled(tokens, jnp.zeros((2, 2, 1)), 2, lost_at=3)
    assert after.grid == (1, 2)
    np.testing.assert_array_equal(after.source[0], [*(0, 0, 1, 1, -4) * 2, *[-4] * 5])
