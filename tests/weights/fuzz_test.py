"""Mutated weight files are read right, or refused in one line, in little time and memory."""

import json
import pathlib
import subprocess
import sys

import pytest
import weight_fuzz


def check(found: dict, cases: int) -> None:
    kinds = [counts for counts in found.values() if isinstance(counts, dict)]
    assert sum(one["loaded"] + one["refused"] for one in kinds) == cases
    assert found["failed"] == []
    assert found["grown_mb"] < 1000


def test_a_few_mutated_files():
    check(weight_fuzz.run(20, seed=3), 20)


@pytest.mark.slow
def test_ten_thousand_mutated_files():
    script = pathlib.Path(weight_fuzz.__file__)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    check(found, 10_000)
    assert all(found[kind]["loaded"] and found[kind]["refused"] for kind in (".pth", "tensors"))
