"""The type checker of the import hook: beartype, that writes a function's checks when it is called.

The hook decorates every function of the package, and those that are defined inside others each time
anew. Most are never called in a test, and the others have the checks of the time before.
"""

import functools
from collections.abc import Callable
from typing import Any

import beartype

_beartype = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
_checks: dict[Any, Callable] = {}


def when_called(function: Callable) -> Callable:
    """`function` with its arguments checked, from its first call on."""

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        return checks_of(function)(*args, **kwargs)

    return checked


def checks_of(function: Callable) -> Callable:
    """The checked `function`, or one that checks the same; the hook's functions do nothing else."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    key = (function.__module__, function.__qualname__, names, *function.__annotations__.items())
    if key not in _checks:
        _checks[key] = _beartype(function)
    return _checks[key]
