"""A long run in short: memory, handles, threads and compiled programs stay where they are.

Tests experiments/long_run.py.
"""

import pathlib
import sys

import pytest
from tiny import tiny_config

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "experiments"))
import long_run


def test_the_table_has_the_first_and_the_last_sample():
    samples = [
        {"minutes": i, "step": 10 * i, "memory": 1.0, "in_use": 0.6, "free": 0.4}
        | {"handles": 2, "threads": 3, "compilations": 4}
        for i in range(50)
    ]
    rows = long_run.table(samples).splitlines()[2:]
    assert len(rows) == 12
    assert rows[0] == "| 0 | 0 | 1 | 1 | 0 | 2 | 3 | 4 |"
    assert rows[-1] == "| 49 | 490 | 1 | 1 | 0 | 2 | 3 | 4 |"


def test_the_recipe_goes_on_until_it_is_stopped():
    config = long_run.recipe()
    assert config.total_steps > 1_000_000
    assert (config.checkpoint_steps, config.eval_steps) == (200, 200)


@pytest.mark.slow
def test_nothing_grows_in_a_minute(tmp_path):
    fields = {"checkpoint_steps": 20, "eval_steps": 20, "layer_to_stage_steps": 0}
    config = tiny_config(total_steps=10_000_000, **fields)
    samples = long_run.watched(config, tmp_path, seconds=60, pause=2)
    half = samples[len(samples) // 2 :]
    assert half[-1]["step"] > half[0]["step"] > 40
    assert half[-1]["compilations"] == half[0]["compilations"]
    # Threads of a save come and go.
    assert min(s["handles"] for s in half[-5:]) <= max(s["handles"] for s in half[:5])
    assert min(s["threads"] for s in half[-5:]) <= max(s["threads"] for s in half[:5])
    assert half[-1]["memory"] < 1.1 * half[0]["memory"]
