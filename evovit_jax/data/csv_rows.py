"""The rows of a CSV file that a user gave, as labels.csv and boxes.csv are.

In UTF-8, columns by the names in the first line, others than those asked for are ignored.

Tested in tests/data/source_test.py.
"""

import csv
import io
import pathlib
from collections.abc import Iterator, Sequence

from evovit_jax.data.stored_files import open_regular
from evovit_jax.errors import UserError

LONGEST_LINE = 1 << 16  # characters
MOST_TABLE = 1 << 30  # bytes


def read(
    table: pathlib.Path, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, str | None]]]:
    """The number of each line and its cells by column, None where the line ends before.

    Raises:
        UserError: naming the first line that is not as it must be.
    """
    try:
        content = open_regular(table, MOST_TABLE)
        with io.TextIOWrapper(content, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(_lines(file, table))
            _check_columns(list(rows.fieldnames or ()), columns, table)
            for row in rows:
                if None in row:
                    where = f"{table} line {rows.line_num}"
                    raise UserError(f"{where} has more cells than the first line has columns")
                yield rows.line_num, row
    except OSError as error:
        raise UserError(f"{table} cannot be read: {error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is not a CSV file in UTF-8 ({error})") from None


def _lines(file: io.TextIOBase, table: pathlib.Path) -> Iterator[str]:
    """The lines, none of them read whole where it has no end."""
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise UserError(f"{table} has a line of {LONGEST_LINE} characters or more")
        yield line


def _check_columns(names: list[str], columns: Sequence[str], table: pathlib.Path) -> None:
    if not set(columns) <= set(names):
        listed = f"{', '.join(columns[:-1])} and {columns[-1]}"
        raise UserError(f"{table}: the first line must name the columns {listed}")
    twice = [name for name in columns if names.count(name) > 1]
    if twice:
        raise UserError(f"{table}: the first line names the column {twice[0]} twice")
