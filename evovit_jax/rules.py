"""The one regex matcher: (pattern, value) rules that say something about every parameter.

Sharding, weight decay, learning-rate multipliers, freezing and loss weights all use it. A rule
matches a whole name (`re.fullmatch`), the first match wins, and a name that no rule matches is an
error: a parameter that a recipe forgot should never be trained by accident.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from evovit_jax.errors import UserError, shortened

# Characters of a variable's name, about, and in how many ways an expression may be tried on one, as
# `ways` counts: four times `.*`, and sixteen alternatives, which take some tenths of a second.
LONGEST_NAME, MOST_WAYS, LONGEST_PATTERN = 64, 16 * 65**4, 1000
# Pairs (regular expression, value); what a config has in their place is refused.
Rules = Any


def match(rules: Rules, names: Iterable[str], *, field: str) -> dict[str, Any]:
    """What the first matching rule says of every name.

    Args:
      rules: pairs (regular expression, value).
      names: what to look up, such as parameter names ("blocks/0/attn/qkv/kernel").
      field: where the rules come from, for the error ("optim.weight_decay_rules").

    Returns:
      {name: value}, in the order of `names`.

    Raises:
      UserError: a rule is no pair or no regular expression, or no rule matches a name.
    """
    if not isinstance(rules, Sequence) or isinstance(rules, str):
        raise UserError(f"{field}: {rules!r} is no list of pairs (regular expression, value)")
    pairs = [_compile(rule, field) for rule in rules]
    found = {}
    for name in names:
        for pattern, value in pairs:
            if pattern.fullmatch(name):
                found[name] = value
                break
        else:
            patterns = ", ".join(repr(pattern.pattern) for pattern, _ in pairs) or "none"
            raise UserError(
                f"no rule of {field} matches {name!r} (patterns: {patterns}); "
                "end the rules with ('.*', VALUE)"
            )
    return found


def numbers(
    rules: Rules, names: Iterable[str], *, field: str, most: float = 1e6
) -> dict[str, float]:
    """`match`, of rules whose values are numbers of at most `most`, their sign aside.

    Raises:
      UserError: likewise, or a value is something else.
    """
    found = match(rules, names, field=field)
    for value in found.values():
        if not isinstance(value, bool | int | float) or not abs(value) <= most:
            raise UserError(f"{field}: {value!r} is no number, or larger than {most:g}")
    return found


def _compile(rule: Any, field: str) -> tuple[re.Pattern[str], Any]:
    is_pair = isinstance(rule, Sequence) and not isinstance(rule, str) and len(rule) == 2
    if not is_pair or not isinstance(rule[0], str):
        raise UserError(f"{field}: {rule!r} is not a pair (regular expression, value)")
    return compiled(rule[0], field), rule[1]


def compiled(pattern: str, field: str) -> re.Pattern[str]:
    """A regular expression that is quickly matched.

    Raises:
      UserError: it is none, or may have to be tried in too many ways.
    """
    if len(pattern) > LONGEST_PATTERN:
        shown = shortened(pattern, 80)
        raise UserError(
            f"{field}: {shown!r} is no regular expression of 1 to {LONGEST_PATTERN} characters"
        )
    try:
        found = re.compile(pattern)
        many = ways(re._parser.parse(pattern)) > MOST_WAYS
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"{field}: {pattern!r} is no regular expression: {error}") from error
    if many:
        raise UserError(
            f"{field}: {pattern!r} could take for ever to match: repeat nothing that has *, +, ? "
            "or | inside, and have at most four of .* and the like"
        )
    return found


def ways(parsed: Any) -> float:
    """In how many ways Python may try to match an expression with a name, at most.

    It tries one after another until one fits; where `(a+)+` does not, that are 2 to the power of
    the name's length.

    Args:
      parsed: what Python's own parser of expressions makes of it.
    """
    return math.prod((_ways_of(str(kind), what) for kind, what in parsed or ()), start=1.0)


def _ways_of(kind: str, what: Any) -> float:
    """`ways` of one part."""
    if kind == "BRANCH":
        return sum(map(ways, what[1]))
    if kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        least, most, body = what
        most, inner = min(int(most), LONGEST_NAME), ways(body)
        if inner == 1:
            return max(1, most - least + 1)
        if inner > MOST_WAYS:  # and to a high power more than a float can be
            return inner
        return sum(inner**times for times in range(min(least, most), most + 1))
    if kind == "GROUPREF_EXISTS":
        return ways(what[1]) + ways(what[2])
    inner = what[-1] if isinstance(what, tuple) else what  # of groups and lookarounds
    return ways(inner) if isinstance(inner, re._parser.SubPattern) else 1
