"""The table of all methods: training, scores, where they run, whose code they equal.

python -m evovit_jax.reduction
python -m evovit_jax.reduction --write docs/methods.md README.md

Tested in tests/reduction/method_table_test.py.
"""

import argparse
import pathlib

from evovit_jax import tables
from evovit_jax.errors import Parser, UserError, run_command
from evovit_jax.reduction import method_table

# Between these lines of a file the table, or the list of names, is written.
PLACES = {
    ("<!-- methods -->", "<!-- end of methods -->"): method_table.table,
    ("<!-- names of methods -->", "<!-- end of names of methods -->"): method_table.listing,
}


def write(path: str) -> None:
    """Writes the table, or the list, or both, where a file has the lines for them.

    Raises:
      UserError: it has none of them, or cannot be written.
    """
    content = pathlib.Path(path).read_text() if pathlib.Path(path).is_file() else ""
    there = [marks for marks in PLACES if marks[0] in content]
    if not there:
        first = " nor ".join(begin for begin, _ in PLACES)
        raise UserError(f"{path} has no line {first}")
    for begin, end in there:
        tables.write_between(path, begin, end, PLACES[begin, end]())


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    Raises:
      UserError: a file has no place for the table.
    """
    parser = Parser(
        prog="python -m evovit_jax.reduction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--write", metavar="FILE", nargs="+", help="put it between a file's marks")
    flags = parser.parse_args(arguments)
    if flags.write is None:
        print(method_table.table())
        return 0
    for path in flags.write:
        write(path)
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    run_command(main)
