"""The interface of reducers: what a backbone says of itself, and settings for a call."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from evovit_jax.errors import UserError
from evovit_jax.reduction.attention_request import key_mask
from evovit_jax.reduction.base import Backbone, Fields, Reducer, check_blocks, check_rate

PYRAMID = Backbone(9, (8, 12, 16), (2, 3, 4), (14, 14), 1, (2, 3, 4), stride=2)


@dataclasses.dataclass(frozen=True)
class LastFields(Fields):
    """`block`: one of the network's; `heads`: a number that parameters are made for."""

    block: int = 0
    heads: int = 1

    def check(self, backbone):
        check_blocks("block", (self.block,), backbone.depth)


class Last(Reducer):
    """Does nothing."""

    Fields = LastFields
    not_in_pyramids = None
    fixed_fields = ("heads",)


def test_a_backbone_knows_its_stages():
    assert PYRAMID.stage_starts == (0, 2, 5)
    assert [PYRAMID.stage(block) for block in range(9)] == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert [block for block in range(9) if PYRAMID.ends_stage(block)] == [1, 4]
    assert PYRAMID.key_dims == (4, 4, 4)
    assert dataclasses.replace(PYRAMID, key_dim=5).key_dims == (5, 5, 5)


def test_settings_for_a_call_leave_the_reducer_as_it_was():
    reducer = Last(PYRAMID, LastFields(), rngs=nnx.Rngs(0))
    assert reducer.override() is reducer
    assert reducer.override(block=8).fields.block == 8
    assert reducer.fields.block == 0


def test_settings_are_checked_against_the_network_when_made_and_for_a_call():
    with pytest.raises(UserError, match=r"block must be .* in 0\.\.8"):
        Last(PYRAMID, LastFields(block=9), rngs=nnx.Rngs(0))
    reducer = Last(PYRAMID, LastFields(), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"block must be .* in 0\.\.8"):
        reducer.override(block=9)
    with pytest.raises(UserError, match="make the model with heads=2"):
        reducer.override(heads=2)
    with pytest.raises(UserError, match="keep_rate must be a number in"):
        check_rate("keep_rate", (0.5, 1.5))


def test_a_key_mask_hides_what_is_out_of_it():
    bias = key_mask(jnp.array([[True, False]]))
    np.testing.assert_array_equal(bias, [[[[0.0, -np.inf]]]])
