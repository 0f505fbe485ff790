"""Errors that a user can mend: one clear line, never a traceback."""

import sys
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """Something that the user gave is wrong; the message names it and says what to do."""


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's `main` and exits; a `UserError` becomes `error: MESSAGE` and status 2."""
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        status = 2
    sys.exit(status)


def suggestion(name: str, known: list[str] | tuple[str, ...]) -> str:
    """A hint for a misspelt `name`: the closest of `known`, else all of them."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def some(names: Iterable[str], most: int = 6) -> str:
    """A list of names that fits a line."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def first_line(error: BaseException, most: int = 120) -> str:
    """What an error says, as much as fits a line."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:most]
