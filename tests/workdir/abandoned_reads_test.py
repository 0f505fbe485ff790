"""Reads that Orbax abandons are not heard of; everything else is."""

import logging
import sys
import types

import pytest

from evovit_jax.workdir import abandoned_reads


@pytest.fixture
def told(monkeypatch):
    """What the hook that was there before is given."""
    found = []
    monkeypatch.setattr(sys, "unraisablehook", found.append)
    abandoned_reads.hush()
    abandoned_reads.hush()
    yield found
    logging.getLogger("asyncio").removeFilter(abandoned_reads._is_news)


@pytest.mark.parametrize(
    ("error", "heard"),
    [
        (RuntimeError("Event loop is closed"), 0),
        (RuntimeError("anything else"), 1),
        (ValueError("Event loop is closed"), 1),
    ],
)
def test_threads_that_come_too_late(told, error, heard):
    sys.unraisablehook(types.SimpleNamespace(exc_type=type(error), exc_value=error))
    assert len(told) == heard


def test_tasks_whose_failure_nobody_asked_for(told, caplog):
    log = logging.getLogger("asyncio")
    log.error("Task exception was never retrieved: <Task coro=<async_deserialize() done>>")
    log.error("Future exception was never retrieved: ValueError('Error opening \"cast\" driver')")
    log.error("Task exception was never retrieved: <Task coro=<mine() done>>")
    assert [record.getMessage().endswith("<mine() done>>") for record in caplog.records] == [True]
