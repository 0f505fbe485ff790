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


@pytest.mark.parametrize("given", [7, "x", None, (7,), ("ab",), (("a", 1), 7)])
def test_what_are_no_rules_is_named(given):
    with pytest.raises(UserError, match=r"mesh\.rules: .* is (no list of pairs|not a pair)"):
        rules.match(given, ["a"], field="mesh.rules")


@pytest.mark.parametrize("pattern", ["(", "x{99999999999}", "(" * 5000 + ")" * 5000])
def test_what_is_no_pattern_is_named(pattern):
    with pytest.raises(UserError, match="is no regular expression"):
        rules.match([(pattern, 1)], ["a"], field="f")


@pytest.mark.parametrize("value", ["1", None, [1], float("nan"), 1e300, -1e300, ("a",)])
def test_numbers_are_numbers(value):
    assert rules.numbers([("a", True), (".*", -2.5)], ["a", "b"], field="f") == {"a": 1, "b": -2.5}
    with pytest.raises(UserError, match=r"f: .* is no number, or larger than"):
        rules.numbers([(".*", value)], ["a"], field="f")


FOREVER = [
    "(a+)+b", "(a|a)*b", "(a|aa)+$", "([a-z]+)*x", r"(\w+/)*x", "(.*a){20}", "(a?){40}a{40}",
    ".*.*.*.*.*b", "((a{0,60}){0,60}){0,60}", "(?:x+x+)+y", "(a)?(?(1)(b*)*|c)", "(?=(a+)+b).*",
    "a" * 1001,
]  # fmt: skip


@pytest.mark.parametrize("pattern", FOREVER)
def test_what_could_match_for_ever_is_refused(pattern):
    with pytest.raises(UserError, match=r"could take for ever to match|of 1 to 1000 characters"):
        rules.match([(pattern, 1), (".*", 2)], ["a" * 40], field="f")


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (".*blocks.*attn.*(kernel|bias).*", "blocks/0/attn/qkv/bias"),
        ("(reducer/)?tradeoff|head/.*", "head/kernel"),
        (r"blocks/([0-9]|1[01])/(attn|mlp)/[a-z0-9]+/kernel", "blocks/11/mlp/fc1/kernel"),
        (r"(?i:HEAD)/(?!bias)\w{1,20}", "head/kernel"),
    ],
)
def test_what_recipes_are_written_with_is_matched(pattern, name):
    assert rules.match([(pattern, 1), (".*", 2)], [name, "x"], field="f") == {name: 1, "x": 2}
