"""The experiments that need a GPU run in their smoke form on what is here."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_the_gpu_experiment_makes_its_tables_and_goes_on_where_it_was(tmp_path):
    def run():
        path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(
            [ROOT / "experiments" / "gpu.sh", tmp_path / "out"],
            env={**os.environ, "SMOKE": "1", "PATH": path, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=1200,
            check=True,
        ).stdout

    steps = ["inference", "training", "methods", "keep_multiple", "evo_0", "dense_0"]
    first = run()
    assert [line[3:] for line in first.splitlines() if line.startswith("== ")] == steps
    tables = (tmp_path / "out" / "tables.md").read_text()
    for title in steps[:4]:
        assert f"## {title}\n\n    python -m evovit_jax.benchmark --dtype=bfloat16" in tables
    assert "evo,keep_multiple=8" in tables
    assert {"| evo_0", "| dense_0"} <= {line[:9].rstrip(" |") for line in tables.splitlines()}
    (tmp_path / "out" / "training" / "benchmark.json").unlink()
    (tmp_path / "out" / "training" / "benchmark.md").rename(tmp_path / "kept.md")
    assert [line for line in run().splitlines() if line.startswith("== ")] == ["== training"]
