"""Limits of the process that JAX does not survive."""

import contextlib
import resource
import threading

import pytest

from evovit_jax.errors import UserError
from evovit_jax.hardware import limits


@contextlib.contextmanager
def limited(kind, value):
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def test_what_there_is_is_given_back():
    count = threading.active_count()
    limits.check()
    assert threading.active_count() == count


def test_too_few_files():
    with limited(resource.RLIMIT_NOFILE, limits.FILES), pytest.raises(UserError, match="ulimit -n"):
        limits.check()


def test_too_little_memory():
    with limited(resource.RLIMIT_AS, 1 << 31), pytest.raises(UserError, match="ulimit -v"):
        limits.check()


def test_too_few_threads(monkeypatch):
    left = iter(range(5))
    real = threading.Thread.start

    def start(thread):
        if next(left, None) is None:
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(limits.threading.Thread, "start", start)
    count = threading.active_count()
    with pytest.raises(UserError, match=r"does not give this process \d+ threads .*ulimit -u"):
        limits.check()
    assert threading.active_count() == count
