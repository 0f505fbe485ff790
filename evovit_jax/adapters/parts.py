"""A module for one call, with other parts than its own.

Tested in tests/adapters/acceleration_test.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import nnx


def with_parts(module: nnx.Module, parts: Mapping[str, Any], cls: type | None = None) -> nnx.Module:
    """A module with the attributes of `module`, of which `parts` are replaced.

    It is made to be called and forgotten: parameters are shared, and a part may be any callable.

    Args:
      module: stays as it is.
      parts: by attribute.
      cls: the class whose call it is; that of `module` by default.
    """
    other = object.__new__(cls or type(module))
    vars(other).update(vars(module) | dict(parts))
    return other


def with_inner_part(
    module: nnx.Module, path: Sequence[str], part: Any, cls: type | None = None
) -> nnx.Module:
    """`with_parts` for one part that a path of attributes leads to."""
    name, *rest = path
    inner = with_inner_part(getattr(module, name), rest, part) if rest else part
    return with_parts(module, {name: inner}, cls)


def inner_part(module: nnx.Module, path: Sequence[str]) -> Any:
    """What a path of attributes leads to."""
    for name in path:
        module = getattr(module, name)
    return module
