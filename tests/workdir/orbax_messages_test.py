"""Tracebacks of Orbax's threads are kept out, others are shown."""

import concurrent.futures
import gc
import sys
import threading
import types

import pytest

from evovit_jax.workdir import orbax_messages


def error_in(module):
    """An error that passed through code of a module of this name."""
    body = types.FunctionType(compile("1 / 0", "x", "exec"), {"__name__": module})
    with pytest.raises(ZeroDivisionError) as found:
        body()
    return found.value


@pytest.mark.parametrize(
    ("module", "theirs"),
    [("orbax.checkpoint.x", True), ("asyncio.events", True), ("evovit_jax.data", False)],
)
def test_whose_an_error_is(module, theirs):
    assert orbax_messages.is_theirs(error_in(module).__traceback__) is theirs


def test_only_what_is_raised_elsewhere_is_kept_out(monkeypatch):
    gc.collect()  # what other tests have left is not of interest
    shown = []
    for owner, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(owner, name, lambda *args: shown.append(args))
    orbax_messages.keep_out.__wrapped__()
    ours, theirs = error_in("evovit_jax.data"), error_in("orbax.x")

    def raised(error):
        sys.excepthook(type(error), error, error.__traceback__)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(raised, theirs).result()
        assert not shown
        pool.submit(raised, ours).result()
    raised(theirs)  # in the main thread it ends the run
    assert [args[1] for args in shown] == [ours, theirs]
    for error in (ours, theirs):
        args = types.SimpleNamespace(exc_value=error, exc_traceback=error.__traceback__)
        sys.unraisablehook(args)
        threading.excepthook(args)
    assert [args[0].exc_value for args in shown[2:]] == [ours, ours]
