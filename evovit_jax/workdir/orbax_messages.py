"""Keeps out what Orbax and TensorStore print of errors that they raise too.

They save and read many arrays at once, in threads and event loops of their own. The first error is
raised where the run waits for it; of all others, and of what is abandoned then, they and Python
print tracebacks, up to the end of the process; a run says it in a line.
"""

import functools
import logging
import sys
import threading
import traceback
import types
from typing import Any

LIBRARIES = {"orbax", "tensorstore", "asyncio", "concurrent"}


@functools.cache
def keep_out() -> None:
    """From now on; errors in the main thread are shown, since they end the run."""
    logging.getLogger("absl").addFilter(_is_ours)
    logging.getLogger("asyncio").addFilter(lambda record: not record.exc_info)
    on_error, on_unraisable = sys.excepthook, sys.unraisablehook
    in_thread = threading.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        # TensorStore calls this hook from threads of its own.
        if threading.current_thread() is threading.main_thread() or not is_theirs(trace):
            on_error(kind, error, trace)

    def show_unraisable(args: Any) -> None:
        if not is_theirs(args.exc_traceback):
            on_unraisable(args)

    def show_of_thread(args: Any) -> None:
        if not is_theirs(args.exc_traceback):
            in_thread(args)

    sys.excepthook, sys.unraisablehook = show, show_unraisable
    threading.excepthook = show_of_thread


def _is_ours(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


def is_theirs(trace: types.TracebackType | None) -> bool:
    """Whether an error passed through the libraries' code."""
    names = (str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(trace))
    return any(name.partition(".")[0] in LIBRARIES for name in names)
