"""Methods that reduce at a few blocks: which ones, and to how many tokens."""

import pytest
from flax import nnx

from evovit_jax.errors import UserError
from evovit_jax.reduction.at_locations import Located, LocatedFields
from evovit_jax.reduction.base import Backbone

FLAT = Backbone(12, (12,), (3,), (14, 14), 1, (12,))
PYRAMID = Backbone(9, (8, 8, 8), (2, 2, 2), (14, 14), 1, (2, 3, 4), stride=2)


def located(**fields):
    return Located(FLAT, LocatedFields(**fields), rngs=nnx.Rngs(0))


def test_the_locations_are_the_quarters_or_the_starts_of_stages():
    assert LocatedFields().blocks(FLAT) == (3, 6, 9)
    assert LocatedFields().blocks(PYRAMID) == (1, 2, 5)
    assert LocatedFields(locations=4).blocks(FLAT) == (4,)
    assert [located().location(block) for block in (2, 3, 9)] == [None, 0, 2]


def test_the_counts_are_shares_of_the_grid_rounded_down():
    assert [located().grid_count(i, (14, 14)) for i in range(3)] == [137, 96, 67]
    each = located(keep_rate=(0.9, 0.5, 0.2))
    assert [each.grid_count(i, (14, 14)) for i in range(3)] == [176, 88, 17]
    assert located(keep_rate=0.01).grid_count(0, (3, 3)) == 1


def test_what_does_not_fit_the_network_is_refused_for_a_call_too():
    with pytest.raises(UserError, match=r"locations must be .* in 0\.\.11"):
        located(locations=(3, 12))
    with pytest.raises(UserError, match=r"locations must be .* in 0\.\.11"):
        located().override(locations=(3, 12))
    with pytest.raises(UserError, match="keep_rate has 2 members for 3 locations"):
        located().override(keep_rate=(0.5, 0.5))
