"""Turns are taken in order, and ratios pair what ran in the same round."""

import pytest

from evovit_jax.benchmarking.timing import Timing, interleave, measure, ratio


def test_median_and_spread():
    timing = Timing((2.0, 1.0, 4.0))
    assert timing.median == 2
    assert timing.spread == pytest.approx(1.5)


def test_the_ratio_pairs_rounds():
    # The machine was twice as slow in the second round, for both.
    assert ratio(Timing((3.0, 6.0, 3.0)), Timing((2.0, 4.0, 2.0))) == pytest.approx(1.5)


def test_things_take_turns():
    order = []

    def timed(name, seconds):
        def run(repeats):
            order.append((name, repeats))
            return seconds

        return run

    measures = {"slow": timed("slow", 0.5), "fast": timed("fast", 0.1)}
    found = interleave(measures, rounds=2, seconds=1.0, warmup=1)
    assert order == [("slow", 1), ("fast", 1), *[("slow", 2), ("fast", 10)] * 2]
    assert found["slow"].seconds == (0.5, 0.5)


def test_the_first_call_of_a_turn_is_not_counted(monkeypatch):
    calls, now = [], [0.0]
    monkeypatch.setattr("evovit_jax.benchmarking.timing.time.perf_counter", lambda: now[0])

    def call():
        calls.append(None)
        now[0] += 100.0 if len(calls) == 1 else 2.0

    assert measure(call)(3) == pytest.approx(2.0)
    assert len(calls) == 4
