"""The schedules of token merging."""

from evovit_jax.reduction import token_counts
from evovit_jax.reduction.base import Backbone
from evovit_jax.reduction.tome import ToMeFields


def test_schedules_are_those_of_the_paper():
    assert ToMeFields(r=13).schedule(12, 196) == (13,) * 12
    assert ToMeFields().schedule(12, 196) == (13,) * 12
    falling = ToMeFields(r=13, inflection=-1.0).schedule(12, 196)
    assert falling == (26, 23, 21, 18, 16, 14, 11, 9, 7, 4, 2, 0)
    assert ToMeFields(r=13, inflection=1.0).schedule(12, 196) == falling[::-1]
    assert ToMeFields(r=(3, 0, 2)).schedule(3, 196) == (3, 0, 2)


def counts(**fields):
    from flax import nnx

    from evovit_jax.reduction.tome import ToMe

    backbone = Backbone(12, (12,), (3,), (14, 14), 1, (12,))
    reducer = ToMe(backbone, ToMeFields(**fields), rngs=nnx.Rngs(0))
    return [count.feed_forward - 1 for count in token_counts.count(reducer, (14, 14))]


def test_no_more_than_half_of_the_tokens_merge():
    assert counts(r=1000)[:4] == [98, 49, 25, 13]


def test_keep_rate_merges_at_locations_as_far_as_half_allows():
    assert counts(keep_rate=0.7)[2::3] == [196, 137, 96, 67]
    assert counts(keep_rate=0.25)[3::3] == [98, 49, 25]
