"""GMACs by phase, the share of a known peak, the share of the time that goes to waiting."""

import json

import jax
import pytest
from tiny import tiny_config

from evovit_jax import flops
from evovit_jax.hardware import accelerators
from evovit_jax.train import loop, utilisation
from evovit_jax.train.program import build
from evovit_jax.workdir import metrics

# One phase, two lines of metrics.
FIELDS = {"total_steps": 4, "layer_to_stage_steps": 4, "log_steps": 2, "eval_steps": 4}


def test_gmacs_follow_the_phase():
    config = tiny_config("digits_evo.py", total_steps=10, layer_to_stage_steps=5)
    run = build(config, jax.devices()[:1])
    cost = utilisation.Cost(run)
    assert cost.gmacs(9) == flops.gmacs(run.create_model())
    # Until then a token may be kept anew in every block; the slow path is as long in both.
    assert cost.gmacs(0) == pytest.approx(cost.gmacs(9), rel=0.05)
    dense = build(tiny_config(reduction="none", total_steps=10), jax.devices()[:1])
    assert cost.gmacs(0) < utilisation.Cost(dense).gmacs(0)


@pytest.mark.slow
def test_a_keep_rate_that_falls_costs_less_and_less():
    fields = {"reduction": "evit,keep_rate=0.5", "keep_rate_warmup_steps": 8, "total_steps": 10}
    cost = utilisation.Cost(build(tiny_config(**fields), jax.devices()[:1]))
    found = [cost.gmacs(step) for step in (0, 4, 9)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1]


def test_the_wait_for_input(monkeypatch):
    # Waits of 1 s and 2 s in 10 s, then a wait of 1 s in 2 s.
    now = iter([0.0, 1.0, 2.0, 5.0, 7.0, 10.0, 10.0, 11.0, 12.0])
    monkeypatch.setattr(utilisation.time, "perf_counter", lambda: next(now))
    batches = iter("abc")
    wait = utilisation.InputWait()
    assert [wait.take(batches), wait.take(batches)] == ["a", "b"]
    assert wait.lap() == pytest.approx(0.3)
    wait.take(batches)
    assert wait.lap() == pytest.approx(0.5)


@pytest.mark.slow
def test_a_training_writes_them(tmp_path, monkeypatch):
    monkeypatch.setitem(accelerators.KNOWN, "cpu", accelerators.Accelerator("here", 0, 1e12, 1))
    loop.train_and_evaluate(tiny_config(**FIELDS), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / metrics.FILE).read_text().splitlines()]
    first, second = (line for line in lines if "loss" in line)
    assert first["gmacs"] == second["gmacs"] > 0
    for line in (first, second):
        assert 0 <= line["input_wait_share"] <= 1
        expected = 6e9 * line["gmacs"] * line["images_per_second"] / (1e12 * jax.device_count())
        assert line["share_of_peak"] == pytest.approx(expected)
