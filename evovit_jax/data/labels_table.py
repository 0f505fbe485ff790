"""labels.csv: which images a folder has, and their classes.

The columns `file` and `label`, each once, others are ignored; in UTF-8. A file is a regular one of
the folder (or of a folder in it), by its path from there; links are followed, but no path leads out
of the folder. Labels are whole numbers from 0. A file that is listed twice counts twice, with the
same label. Labels that nothing has are said.

Tested in tests/data/source_test.py.
"""

import os
import pathlib

from absl import logging

from evovit_jax.data import csv_rows
from evovit_jax.errors import UserError, shortened

# A larger label is the id of something: no published data set has so many classes.
MOST_CLASSES = 1_000_000
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
    for number, row in csv_rows.read(table, COLUMNS):
        where = f"{table} line {number}"
        label = _label(row["label"], table, number)
        name = present.check(row["file"] or "", where)
        before, line = seen.setdefault(name, (label, number))
        if before != label:
            raise UserError(f"{where}: {name!r} is of {label}, in line {line} of {before}")
        labels.append(label)
        files.append(str(folder / name))
    if not files:
        raise UserError(f"{table} lists no images")
    _say_gaps(labels, table)
    return files, labels


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
