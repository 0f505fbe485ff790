"""What a benchmark's rows say of the times that were taken, with times that are known."""

import contextlib

import pytest

from evovit_jax import flops
from evovit_jax.benchmarking import own_models, rows, timm_models
from evovit_jax.models import abstract_model

SECONDS = {"none": 0.5, "evit,keep_rate=0.5": 0.25}  # of one call, by reduction
MODELS = [("deit_tiny_patch16_224", reduction) for reduction in SECONDS]
TIMM_SECONDS = {"timm eager": 1.0, "timm compiled": 0.125}


@pytest.fixture(autouse=True)
def known_times(monkeypatch):
    """Cases of ours that compute nothing and take known times."""

    def make(name, reduction, *, batch_size, mode, dtype, image_size, chunk, remat):
        row = {
            "framework": "evovit_jax",
            "model": name,
            "reduction": reduction,
            "dtype": dtype,
            "batch_size": batch_size,
            "mode": mode,
            "image_size": image_size,
            "gmacs": 1.23456,
            "peak_memory_mb": 12.34,
            "compile_seconds": 1.234,
        }
        return own_models.Case(row, lambda repeats: batch_size * SECONDS[reduction], 10**9)

    monkeypatch.setattr(own_models, "make", make)


class Timm(timm_models.Peer):
    """Answers as timm's process does; knows DeiT alone."""

    def __init__(self):
        self.asked = []

    def make(self, **request):
        self.asked.append(request)
        known = request["model"].startswith("deit")
        return {"number": int(request["compiled"]) if known else None, "compile_seconds": 0.5}

    def measure(self, number):
        return lambda repeats: list(TIMM_SECONDS.values())[number]

    def peak_memory_mb(self, number):
        return None


@pytest.fixture
def timm(monkeypatch):
    peer = Timm()
    monkeypatch.setattr(timm_models, "start", lambda: contextlib.nullcontext(peer))
    return peer


def run(models=MODELS, **settings):
    return rows.run(models, rounds=2, seconds=0.01, image_size=32, **settings)


def test_speed_ups_are_over_the_first_model_of_the_batch_size():
    made = run(batch_sizes=(1, 4))["rows"]
    assert [(row["batch_size"], row["reduction"], row["speedup"]) for row in made] == [
        (1, "none", 1),
        (1, "evit,keep_rate=0.5", 2),
        (4, "none", 1),
        (4, "evit,keep_rate=0.5", 2),
    ]
    assert [row["latency_ms"] for row in made] == [500, 250, 2000, 1000]
    assert [row["images_per_second"] for row in made] == [2, 4, 2, 4]
    assert (made[0]["gmacs"], made[0]["peak_memory_mb"], made[0]["spread"]) == (1.235, 12.3, 0)


def test_without_matmuls_no_share_of_a_peak():
    found = run(batch_sizes=(1,))
    assert found["matmul_peak_gflops"] is None
    assert found["rows"][0]["share_of_peak"] is None


@pytest.mark.parametrize(("mode", "passes"), [("inference", 1), ("train", 3)])
def test_peers_are_rows_of_the_dense_model(timm, mode, passes, monkeypatch):
    cases = []
    real = rows._measure
    monkeypatch.setattr(rows, "_measure", lambda made, **k: cases.extend(made) or real(made, **k))
    made = run(batch_sizes=(2,), mode=mode, timm=True)["rows"]
    assert [row["framework"] for row in made] == ["evovit_jax"] * 2 + list(TIMM_SECONDS)
    assert [row["reduction"] for row in made[2:]] == ["none", "none"]
    assert [row["images_per_second"] for row in made[2:]] == [2, 16]
    assert made[2]["peak_memory_mb"] is None
    gmacs = flops.gmacs(abstract_model("deit_tiny_patch16_224", image_size=32))
    assert made[2]["gmacs"] == round(gmacs, 3)
    assert cases[2].operations == round(2e9 * gmacs * 2 * passes)
    assert [request["compiled"] for request in timm.asked] == [False, True]


def test_a_model_that_timm_has_not_has_no_row(timm):
    made = run([("evo_deit_tiny_patch16_224", "none")], batch_sizes=(1,), timm=True)["rows"]
    assert [row["framework"] for row in made] == ["evovit_jax"]
