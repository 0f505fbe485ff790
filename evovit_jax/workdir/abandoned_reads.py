"""Keeps quiet about reads that Orbax abandons: of a damaged checkpoint the first failure is told.

Orbax reads all arrays at once and stops at the first that fails. The others fail too, some of them
in threads that find their event loop closed, and Python would print a traceback of each.
"""

import logging
import sys
from collections.abc import Callable

# Orbax's coroutine that reads an array, and how TensorStore begins to say why it could not.
READS = ("async_deserialize", 'Error opening "')
CLOSED = "Event loop is closed"


class _Hook:
    """`sys.unraisablehook`, without what threads say that come back too late."""

    def __init__(self, other: Callable):
        self.other = other

    def __call__(self, found) -> None:
        if not (found.exc_type is RuntimeError and str(found.exc_value) == CLOSED):
            self.other(found)


def _is_news(record: logging.LogRecord) -> bool:
    return not any(read in record.getMessage() for read in READS)


def hush() -> None:
    """From now on, in this process; what anything else says is printed as before."""
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)
    logging.getLogger("asyncio").addFilter(_is_news)  # once, however often it is added
