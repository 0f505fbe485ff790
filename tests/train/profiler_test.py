"""Traces of the steps that are asked for, and no others."""

import pytest
from tiny import tiny_config

from evovit_jax.errors import UserError
from evovit_jax.train import loop, profiler


@pytest.mark.parametrize(("spec", "steps"), [("", []), ("100:103", [100, 101, 102]), ("0:1", [0])])
def test_the_steps_of_a_range(spec, steps):
    assert list(profiler.parse(spec)) == steps


@pytest.mark.parametrize("spec", ["100", "110:100", "5:5", "a:b", "1:2:3", "-1:3"])
def test_what_is_no_range(spec):
    with pytest.raises(UserError, match=rf"profile_steps='{spec}': say FIRST:END"):
        profiler.parse(spec)


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
