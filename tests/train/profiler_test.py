"""Traces of the steps that are asked for, and no others."""

import pytest
from tiny import tiny_config

from evovit_jax.train import loop, profiler


@pytest.fixture
def calls(monkeypatch):
    made = []
    monkeypatch.setattr(profiler.jax.profiler, "start_trace", lambda folder: made.append(folder))
    monkeypatch.setattr(profiler.jax.profiler, "stop_trace", lambda: made.append("stop"))
    return made


@pytest.mark.parametrize(
    ("first", "last", "traced"),
    [(0, 9, [3, 4]), (4, 9, [4]), (5, 9, []), (0, 4, [3])],
    ids=["whole", "resumed within", "resumed after", "ended within"],
)
def test_a_run_passes_the_range(calls, tmp_path, first, last, traced):
    tracer = profiler.Profiler("3:5", tmp_path)
    on = []
    for step in range(first, last):
        tracer.before(step)
        if calls and calls[-1] != "stop":
            on.append(step)
        tracer.after(step, None)
    tracer.close()
    assert on == traced
    assert calls == ([str(tmp_path / "profile"), "stop"] if traced else [])


@pytest.mark.slow
def test_a_training_leaves_a_trace(tmp_path):
    loop.train_and_evaluate(tiny_config(profile_steps="1:2"), tmp_path)
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000
