"""Errors that a user can mend or try again: one clear line, never a traceback."""

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import NoReturn

# The statuses of a command that ends with a line: something is to be mended; nothing is, start it
# again (EX_TEMPFAIL of sysexits.h).
MEND, AGAIN = 2, 75
# What to do about errors of the system.
MENDS = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in the disk quota",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "let other programs close files",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "ask for the permission",
    errno.EPERM: "ask for the permission",
    errno.ENOMEM: "free memory, or raise its limit (ulimit -v)",
    errno.EAGAIN: "raise the limit of processes and threads (ulimit -u)",
}

MOST_SHOWN = 1000  # characters of a message


class UserError(ValueError):
    """Something that the user gave is wrong; the message names it and says what to do.

    It is one line, whatever the names in it are made of.
    """

    def __init__(self, message: str):
        super().__init__(shortened(printable(message), MOST_SHOWN))


class Parser(argparse.ArgumentParser):
    """The flags of a command; a wrong one is a line, as any other error is."""

    def error(self, message: str) -> NoReturn:
        """Ends the parsing.

        Raises:
          UserError: always.
        """
        raise UserError(f"{message}; --help shows all flags")


def printable(text: str) -> str:
    r"""A text without line breaks and control characters: those become escapes such as \n.

    So do the bytes of file names that are no UTF-8, which Python has as lone surrogates.
    """
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if text.isprintable() else "".join(shown)


def shortened(text: str, most: int) -> str:
    """A text of at most `most` characters: its beginning and its end."""
    half = most // 2 - 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's `main` and exits; what `ending` knows becomes `error: LINE` and a status."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names may have what a terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    with interruptible():
        try:
            status = main()
        except BaseException as error:
            found = ending(error)
            if found is None:
                raise
            status, line = found
            print(f"error: {printable(line)}", file=sys.stderr, flush=True)
    sys.exit(status)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGHUP end the process at once, with a line."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGHUP is under nohup
                before[number] = signal.signal(number, end_now)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_now(number: int, frame: FrameType | None) -> None:
    """A signal handler. Raising an error would not do: Python drops it inside of a callback."""
    del frame
    os.write(2, f"error: {interrupted(number)}\n".encode())
    os._exit(AGAIN)


def interrupted(number: int) -> str:
    """The line of a command that a signal ends."""
    name = signal.Signals(number).name
    return f"interrupted by {name}; what is on disk is whole: start again to go on"


def ending(error: BaseException) -> tuple[int, str] | None:
    """The status and the line with which an error ends a command; None for a fault of the code."""
    if isinstance(error, UserError):
        return MEND, str(error)
    if isinstance(error, KeyboardInterrupt):
        return AGAIN, interrupted(*error.args or (signal.SIGINT,))
    if isinstance(error, MemoryError):
        return MEND, "out of memory; free some, raise its limit (ulimit -v), or take less at once"
    if isinstance(error, OSError):
        mend = MENDS.get(error.errno or 0, "see that what is named is there and can be used")
        return MEND, f"{error}; {mend}, then start again"
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, RuntimeError) and threading.Thread.start.__code__ in frames:
        return MEND, f"{error}; {MENDS[errno.EAGAIN]}, then start again"
    return None


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


# `python -m evovit_jax.COMMAND` comes here first; what is imported then takes seconds.
if sys.argv[:1] == ["-m"] and any(name.startswith("evovit_jax.") for name in sys.orig_argv):
    signal.signal(signal.SIGINT, end_now)
