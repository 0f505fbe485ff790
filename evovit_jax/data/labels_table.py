"""labels.csv: which images a folder has, and their classes.

The columns `file` and `label`, each once, others are ignored; in UTF-8. A file is a regular one of
the folder (or of a folder in it), by its path from there; links are followed, but no path leads out
of the folder. Labels are whole numbers from 0. A file that is listed twice counts twice, with the
same label. Labels that nothing has are said.

Tested in tests/data/source_test.py.
"""

import csv
import io
import os
import pathlib
from collections.abc import Iterator

from absl import logging

from evovit_jax.data.stored_files import open_regular
from evovit_jax.errors import UserError, shortened

# A larger label is the id of something: no published data set has so many classes.
MOST_CLASSES = 1_000_000
LONGEST_LINE = 1 << 16  # characters
MOST_TABLE = 1 << 30  # bytes
COLUMNS = ("file", "label")


def read(table: pathlib.Path) -> tuple[list[str], list[int]]:
    """The paths and labels of the images, in the table's order.

    Raises:
        UserError: naming the first line that is not as it must be.
    """
    folder = table.parent / "images"
    if not folder.is_dir():
        folder = table.parent
    present = _Present(folder, table)
    files: list[str] = []
    labels: list[int] = []
    seen: dict[str, tuple[int, int]] = {}  # by file: label, line
    try:
        content = open_regular(table, MOST_TABLE)
        with io.TextIOWrapper(content, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(_lines(file, table))
            _check_columns(rows.fieldnames or (), table)
            for row in rows:
                where = f"{table} line {rows.line_num}"
                if None in row:
                    raise UserError(f"{where} has more cells than the first line has columns")
                label = _label(row["label"], table, rows.line_num)
                name = present.check(row["file"] or "", where)
                before, line = seen.setdefault(name, (label, rows.line_num))
                if before != label:
                    raise UserError(f"{where}: {name!r} is of {label}, in line {line} of {before}")
                labels.append(label)
                files.append(str(folder / name))
    except OSError as error:
        raise UserError(f"{table} cannot be read: {error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is not a CSV file in UTF-8 ({error})") from None
    if not files:
        raise UserError(f"{table} lists no images")
    _say_gaps(labels, table)
    return files, labels


def _lines(file: io.TextIOBase, table: pathlib.Path) -> Iterator[str]:
    """The lines, none of them read whole where it has no end."""
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise UserError(f"{table} has a line of {LONGEST_LINE} characters or more")
        yield line


def _check_columns(names: list[str] | tuple[()], table: pathlib.Path) -> None:
    if not set(COLUMNS) <= set(names):
        raise UserError(f"{table}: the first line must name the columns file and label")
    twice = [name for name in COLUMNS if list(names).count(name) > 1]
    if twice:
        raise UserError(f"{table}: the first line names the column {twice[0]} twice")


class _Present:
    """The regular files of a folder; a look at the disk for those in folders below only."""

    def __init__(self, folder: pathlib.Path, table: pathlib.Path):
        self._folder = folder
        self._names = {entry.name for entry in os.scandir(folder) if _is_file(entry)}
        self._table = os.path.relpath(table, folder)

    def check(self, given: str, where: str) -> str:
        """The file's path from the folder, in its shortest form.

        Raises:
            UserError: it leads out of the folder, or there is no such file.
        """
        if given in self._names and given != self._table:
            return given
        shown, name = repr(shortened(given, 200)), os.path.normpath(given)
        if os.path.isabs(name) or name.split(os.sep)[0] == os.pardir:
            raise UserError(f"{where}: {shown} is outside {self._folder}")
        inside = name in self._names or os.path.isfile(self._folder / name)
        if not given or not inside or name == self._table:
            raise UserError(f"{where}: no file {shown} in {self._folder}")
        return name


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _label(text: str | None, table: pathlib.Path, line: int) -> int:
    digits = "" if text is None else text.strip()
    if not digits.isascii() or not digits.isdigit():
        shown = text if text is None else shortened(text, 40)
        raise UserError(f"{table} line {line}: label {shown!r} is not a whole number from 0")
    digits = digits.lstrip("0") or "0"
    if len(digits) > len(str(MOST_CLASSES)) or int(digits) >= MOST_CLASSES:
        raise UserError(
            f"{table}: label {shortened(digits, 40)} in line {line} makes more than {MOST_CLASSES} "
            "classes; number the classes from 0"
        )
    return int(digits)


def _say_gaps(labels: list[int], table: pathlib.Path) -> None:
    used, count = set(labels), max(labels) + 1
    if len(used) < count:
        first = next(label for label in range(count) if label not in used)
        gaps = count - len(used)
        logging.warning("%s: %d of %d classes have no image, first %d", table, gaps, count, first)
