"""Tables in Markdown."""

from collections.abc import Iterable
from typing import Any


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


def _line(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
