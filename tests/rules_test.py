"""The regex matcher."""

import pytest

from evovit_jax import rules
from evovit_jax.errors import UserError


def test_first_match_wins():
    found = rules.match([("a.*", 1), (".*", 2)], ["ab", "b", "ba"], field="f")
    assert found == {"ab": 1, "b": 2, "ba": 2}


def test_the_whole_name_is_matched():
    with pytest.raises(UserError, match=r"no rule of optim.x matches 'xbias'.*'bias'"):
        rules.match([("bias", 1)], ["xbias"], field="optim.x")


def test_no_rules_match_nothing():
    assert rules.match([], [], field="f") == {}
    with pytest.raises(UserError, match="patterns: none"):
        rules.match([], ["a"], field="f")


@pytest.mark.parametrize("rule", [("a",), ("a", 1, 2), (1, 2)])
def test_what_is_no_pair_is_named(rule):
    with pytest.raises(UserError, match="is not a pair"):
        rules.match([rule], ["a"], field="f")


def test_a_wrong_expression_is_named():
    with pytest.raises(UserError, match=r"f: '\(' is no regular expression"):
        rules.match([("(", 1)], ["a"], field="f")
