"""Mutated weight files are read right, or refused in one line, in little time and memory."""

import json
import pathlib
import subprocess
import sys

import pytest


def fuzz(cases: int, seed: int) -> dict:
    script = pathlib.Path(__file__).with_name("fuzz.py")
    command = [sys.executable, str(script), f"--cases={cases}", f"--seed={seed}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    kinds = [counts for counts in found.values() if isinstance(counts, dict)]
    assert sum(one["loaded"] + one["refused"] for one in kinds) == cases
    assert found["failed"] == []
    assert found["grown_mb"] < 1000
    return found


def test_a_few_mutated_files():
    found = fuzz(120, seed=1)
    assert found[".pth"]["refused"] > 0


@pytest.mark.slow
def test_ten_thousand_mutated_files():
    found = fuzz(10_000, seed=0)
    assert all(found[kind]["loaded"] and found[kind]["refused"] for kind in (".pth", "tensors"))
