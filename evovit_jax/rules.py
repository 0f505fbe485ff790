"""The one regex matcher: (pattern, value) rules that say something about every parameter.

Sharding, weight decay, learning-rate multipliers, freezing and loss weights all use it. A rule
matches a whole name (`re.fullmatch`), the first match wins, and a name that no rule matches is an
error: a parameter that a recipe forgot should never be trained by accident.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from evovit_jax.errors import UserError

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
    """A regular expression.

    Raises:
      UserError: it is none.
    """
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"{field}: {pattern!r} is no regular expression: {error}") from error
