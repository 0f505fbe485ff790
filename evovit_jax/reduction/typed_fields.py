"""The values given for a reducer's fields against the types that its dataclass declares.

A dataclass checks no types, and a wrong one shows up far away: as another exception, or, as any
text is true, not at all. Whatever comes from a command line, a config or a call passes here first.
"""

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from evovit_jax.errors import UserError, suggestion

_ONE = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a word",
    type(None): "none",
}
_MANY = {int: "whole numbers", float: "finite numbers", str: "words"}
_SHOWN = 60  # characters of a wrong value


def checked(owner: str, fields: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` for the dataclass `fields`, lists as tuples and NumPy's scalars as Python's.

    Args:
      owner: who has the fields, for the message: `reduction 'evit'`.
      fields: a dataclass. Its annotations of bool, int, float, str, None, tuples and unions of
        these are checked; fields of other types take what they get.
      given: values by field; not all fields need one.

    Raises:
      UserError: for a field that it does not have, or a value that is not of the field's type: an
        int stands for a float, a bool for no number, and no number is nan or infinite.
    """
    known = [field.name for field in dataclasses.fields(fields) if field.init]
    hints = _hints(fields)
    values = {}
    for name, value in given.items():
        if name not in known:
            hint = suggestion(str(name), known) if known else "it has none"
            raise UserError(f"{owner} has no field {name!r}; {hint}")
        values[name] = value = plain(value)
        kinds = _members(hints.get(name, Any))
        if not any(_fits(value, kind) for kind in kinds):
            raise UserError(f"{owner}: {name} must be {_wanted(kinds)}, got {_shown(value)}")
    return values


def _hints(fields: type) -> dict[str, Any]:
    """The annotations of a dataclass; none where they name what only a type checker imports."""
    try:
        return typing.get_type_hints(fields)
    except NameError:
        return {}


def plain(value: Any) -> Any:
    """Python's own scalars and tuples, which hash and compare, so that they can be static."""
    if type(value) in (list, tuple):  # not a named tuple
        return tuple(plain(member) for member in value)
    return value.item() if isinstance(value, np.generic) else value


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _fits(value: Any, kind: Any) -> bool:
    """Whether `value` is of the type `kind`, which is no union."""
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        if not isinstance(value, tuple):
            return False
        if inner[-1:] == (Ellipsis,):
            inner = inner[:1] * len(value)
        return len(inner) == len(value) and all(
            any(_fits(member, one) for one in _members(hint))
            for member, hint in zip(value, inner, strict=True)
        )
    if kind is float:
        # A comparison, for math.isfinite refuses large ints; nan compares as false.
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) <= sys.float_info.max
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in _ONE else True


def _wanted(kinds: tuple[Any, ...]) -> str:
    """The types in words: `a whole number, several with colons between them or none`."""
    words = []
    for kind in kinds:
        if kind in _ONE:
            words.append(_ONE[kind])
            continue
        inner = [one for hint in typing.get_args(kind) for one in _members(hint)]
        if inner[0] in kinds:
            words.append("several with colons between them")
        else:
            words.append(f"{_MANY.get(inner[0], 'values')} with colons between them (one as 3:)")
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _shown(value: Any) -> str:
    """A value in one short line, lists as a command line has them."""
    text = repr(value)
    if isinstance(value, tuple) and value:
        text = ":".join(map(str, value)) + (":" if len(value) == 1 else "")
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
