"""The compiler that one process at a time may use, and what it expects of a program."""

import importlib.util
import pathlib
import queue
import subprocess
import sys
import threading

import pytest

from evovit_jax.errors import UserError
from evovit_jax.hardware import compiler_estimates, tpu_compiler

SLICE = tpu_compiler.Slice("v5e", "2x2")
HLO = (pathlib.Path(__file__).parent / "golden" / "tpu_program.txt").read_text()


def test_a_missing_compiler_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'evovit_jax\[tpu-compiler\]'"):
        SLICE.check_installed("--target")


def test_a_program_takes_its_cycles():
    sums = compiler_estimates.estimate(HLO)
    estimate = SLICE.estimate(HLO, 131_072 * sums.cycles / 2, "bfloat16")
    assert estimate.ms == pytest.approx((sums.low / 1.503e6, sums.cycles / 1.503e6))
    assert estimate.unknown == sums.unknown
    assert estimate.fields["estimated_share_of_peak"] == 0.5
    assert estimate.fields["kernels"] == sums.kernels
    assert set(SLICE.columns) <= set(estimate.fields)
    assert SLICE.parts in estimate.fields


FIRST = """
import sys
from evovit_jax.hardware import tpu_compiler
tpu_compiler.LOCK = sys.argv[1]
with tpu_compiler.Slice("v5e", "2x2").alone():
    pass
print("compiled", flush=True)
sys.stdin.read()
"""


def test_whoever_comes_second_waits_until_the_first_process_has_ended(monkeypatch, tmp_path):
    # Not the lock of whatever else uses libtpu on this machine.
    monkeypatch.setattr(tpu_compiler, "LOCK", str(tmp_path / "lock"))
    said = queue.Queue()
    monkeypatch.setattr(tpu_compiler, "print", lambda line, **_: said.put(line), raising=False)
    done = threading.Event()

    def second():
        with SLICE.alone():
            done.set()

    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", FIRST, tpu_compiler.LOCK], **pipes) as first:
        assert first.stdout.readline() == b"compiled\n"
        thread = threading.Thread(target=second)
        thread.start()
        line = said.get(timeout=60)
        assert not done.is_set()
    thread.join()
    assert line == "another process is compiling with libtpu; waiting for it"
    assert done.is_set()
    with SLICE.alone():  # once more in the same process
        pass
    assert said.empty()
