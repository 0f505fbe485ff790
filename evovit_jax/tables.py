"""What commands print and write for others to read: tables in Markdown, and lines of JSON."""

import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from evovit_jax.errors import UserError

# What Markdown or HTML takes for more than text; underscores inside a word are no such thing.
_MARKS = re.compile(r"[\\`*\[\]<>&|$~#!]|(?<![^\W_])_|_(?![^\W_])")
_BAR, _ESCAPED = re.compile(r"(?<!\\)[|]"), r"\\|"


def json_line(value: Any, indent: int | None = None) -> str:
    """A value as JSON, null for numbers that JSON does not have: NaN and infinity.

    Args:
      value: as `json.dumps` takes it.
      indent: spaces for each level; None for one line.
    """
    return json.dumps(_finite(value), allow_nan=False, indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def plain_text(text: str) -> str:
    """A text, such as a file's name, that Markdown and HTML show as it is."""
    return _MARKS.sub(r"\\\g<0>", text).replace("\\<", "&lt;").replace("\\&", "&amp;")


def markdown(
    header: Iterable[str], rows: Iterable[Iterable[Any]], rule: Iterable[str] | None = None
) -> str:
    """A table, without a newline at its end.

    Args:
      header: a title for each column.
      rows: cells, whatever `str` takes.
      rule: "---" or "---:" (to the right) for each column; None leaves it to the reader.
    """
    header = list(header)
    under = f"|{'---|' * len(header)}" if rule is None else _line(rule)
    return "\n".join([_line(header), under, *map(_line, rows)])


def cell(form: str, *keys: str, none: str = "") -> Callable[[Mapping[str, Any]], str]:
    """What a column shows of a row: some of its values in a form, `none` where one is missing."""

    def shown(row: Mapping[str, Any]) -> str:
        values = [row.get(key) for key in keys]
        return none if None in values else form.format(*values)

    return shown


def _line(cells: Iterable[Any]) -> str:
    """A row; a bar in a cell is escaped, for it would end the cell even in code."""
    return f"| {' | '.join(_BAR.sub(_ESCAPED, str(cell)) for cell in cells)} |"


def write_between(path: str | os.PathLike, begin: str, end: str, text: str) -> None:
    """Puts a text between the lines `begin` and `end` of a file, in the place of what was there.

    Raises:
      UserError: the file has no such lines, or cannot be written.
    """
    path = pathlib.Path(path)
    before, found, rest = (path.read_text() if path.is_file() else "").partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise UserError(f"{path} has no lines {begin} and {end}")
    try:
        path.write_text(f"{before}{begin}\n{text}\n{end}{after}")
    except OSError as error:
        raise UserError(f"cannot write --write={path}: {error.strerror or error}") from None
