"""The benchmark's command: its fields, its files, its refusals."""

import json

import pytest

from evovit_jax import benchmark
from evovit_jax.benchmarking import report as benchmark_report
from evovit_jax.errors import UserError

FIELDS = {
    "framework",
    "model",
    "reduction",
    "dtype",
    "batch_size",
    "mode",
    "spread",
    "images_per_second",
    "latency_ms",
    "peak_memory_mb",
    "gmacs",
    "share_of_peak",
    "compile_seconds",
}
SMALL = ["--image_size=32", "--rounds=2", "--seconds=0.01"]
MODELS = "--models=deit_tiny_patch16_224;deit_tiny_patch16_224+evit,keep_rate=0.5"


def last_json(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["inference", "train"])
def test_the_command_prints_and_writes(mode, capsys, tmp_path):
    flags = [MODELS, "--batch_sizes=1,3", f"--mode={mode}", "--json", f"--output={tmp_path}"]
    benchmark.main([*SMALL, *flags])
    found = last_json(capsys.readouterr().out)
    assert found["matmul_peak_gflops"] > 0
    rows = found["rows"]
    assert [(row["batch_size"], row["reduction"]) for row in rows] == [
        (1, "none"),
        (1, "evit,keep_rate=0.5"),
        (3, "none"),
        (3, "evit,keep_rate=0.5"),
    ]
    for row in rows:
        assert set(row) >= FIELDS
        assert row["framework"] == "evovit_jax"
        assert row["mode"] == mode
        assert row["images_per_second"] == pytest.approx(
            1e3 * row["batch_size"] / row["latency_ms"], rel=0.01
        )
        assert row["peak_memory_mb"] > 0
        assert 0 < row["share_of_peak"] < 2
    assert rows[0]["speedup"] == 1
    assert rows[1]["gmacs"] < rows[0]["gmacs"]
    assert json.loads((tmp_path / "benchmark.json").read_text()) == found
    assert (tmp_path / "benchmark.md").read_text().count("evit,keep_rate=0.5") == 2
    assert (tmp_path / "benchmark.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models=deit_tinny_patch16_224"], "unknown model 'deit_tinny_patch16_224'"),
        (["--models="], "--models names no model"),
        (["--models=deit_tiny_patch16_224+evt"], "unknown reduction 'evt'"),
        ([MODELS, "--batch_sizes=1,x"], "--batch_sizes must be whole numbers"),
        ([MODELS, "--batch_sizes=0"], "--batch_sizes must be whole numbers"),
        ([MODELS, "--peers=timmm"], "--peers=timmm is unknown here"),
        ([MODELS, "--rounds=0"], "--rounds=0 must be at least 1"),
        (["--mode=data"], "--mode=data needs --data"),
        ([MODELS, "--mode=gradient"], "--mode=gradient is an estimate for a --target"),
        ([MODELS, "--mode=data", "--target=v5e"], "--target goes with inference, gradient or"),
        (
            [MODELS, "--mode=gradient", "--target=v5e", "--remat=full"],
            "--remat goes with --mode=train",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(flags, message):
    with pytest.raises(UserError, match=message) as error:
        benchmark.main(flags)
    assert "\n" not in str(error.value)


def test_an_output_that_cannot_be_written_ends_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(benchmark.rows, "run", None)
    with pytest.raises(UserError, match=r"cannot write to --output=.*: Not a directory"):
        benchmark.main([MODELS, f"--output={tmp_path}/file/out"])


def test_the_output_may_be_under_the_home_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = {"device": "cpu", "matmul_peak_gflops": None, "rows": []}
    monkeypatch.setattr(benchmark.rows, "run", lambda *_, **__: found)
    monkeypatch.setattr(benchmark_report, "table", lambda _: "a table")
    benchmark.main([MODELS, "--output=~/out"])
    assert (tmp_path / "out" / "benchmark.md").read_text() == "a table\n"
    assert f"written to {tmp_path}/out" in capsys.readouterr().out
