"""Slices by name, and the compiler that one process at a time may use."""

import importlib.util
import queue
import threading

import pytest

from evovit_jax.errors import UserError
from evovit_jax.hardware import tpu_compiler


def test_slices_are_known_by_generation_and_size():
    found = tpu_compiler.parse("v5e:8x8")
    assert (found.chips, found.kind.operations, str(found)) == (64, 131_072, "v5e:8x8")
    assert str(tpu_compiler.parse("v5p")) == "v5p:2x2x1"
    assert [slice.chips for slice in found.sizes()][:3] == [4, 8, 16]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v9", "--topology=v9 is unknown; there are v4, v5e, v5p, v6e"),
        ("v5e:1x1", "--topology=v5e:1x1: slices of v5e are 2x2, 2x4"),
        ("v5p:2x2", "--topology=v5p:2x2: slices of v5p are 2x2x1"),
    ],
)
def test_what_is_no_slice_is_refused(text, said):
    with pytest.raises(UserError, match=said):
        tpu_compiler.parse(text)


def test_a_missing_compiler_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'evovit_jax\[tpu-compiler\]'"):
        tpu_compiler.check_installed("--target")


def test_whoever_comes_second_waits_and_says_so(monkeypatch, tmp_path):
    # Not the lock of whatever else uses libtpu on this machine.
    monkeypatch.setattr(tpu_compiler, "LOCK", str(tmp_path / "lock"))
    said = queue.Queue()
    monkeypatch.setattr(tpu_compiler, "print", lambda line, **_: said.put(line), raising=False)
    done = threading.Event()

    def second():
        with tpu_compiler.alone():
            done.set()

    with tpu_compiler.alone():
        thread = threading.Thread(target=second)
        thread.start()
        line = said.get(timeout=60)
        assert not done.is_set()
    thread.join()
    assert line == "another process is compiling with libtpu; waiting for it"
    assert done.is_set()
