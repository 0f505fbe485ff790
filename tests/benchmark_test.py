"""The benchmark's command: its fields, its files, its refusals."""

import json
import sys

import pytest

from evovit_jax import benchmark, flops
from evovit_jax.benchmarking import matmul_peak, own_models, rows, timm_models
from evovit_jax.benchmarking import report as benchmark_report
from evovit_jax.errors import UserError
from evovit_jax.models import abstract_model

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
        ([MODELS, "--rounds=0"], "--rounds must be at least 1"),
        (["--mode=data"], "--mode=data needs --data"),
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


def test_a_missing_peer_names_the_extra(monkeypatch):
    monkeypatch.setattr(timm_models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'evovit_jax\[torch\]'"), timm_models.start():
        pass


def test_models_without_a_reduction_have_their_own():
    assert own_models.parse_models(
        "evo_deit_tiny_patch16_224; deit_tiny_patch16_224 + tome,r=8"
    ) == [
        ("evo_deit_tiny_patch16_224", "evo"),
        ("deit_tiny_patch16_224", "tome,r=8"),
    ]


def test_the_peak_is_measured_at_the_models_shapes():
    model = abstract_model("evo_deit_small_patch16_224")
    shapes = matmul_peak.matmul_shapes(model, 16)
    assert {(3152, 384, 1152), (3152, 384, 1536), (1600, 384, 1152), (1600, 1536, 384)} < shapes
    assert matmul_peak.largest(shapes, 1) == [(3152, 1536, 384)]
    assert matmul_peak.operations((2, 3, 5)) == 60
    assert matmul_peak.matmul((2, 3, 5), "float32")().shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "size"), [("deit_tiny_patch16_224", 32), pytest.param("levit_128s", 64, id="levit")]
)
def test_a_training_step_trains(name, size):
    case = own_models.make(name, "none", batch_size=2, mode="train", image_size=size)
    assert case.operations > 2 * 2.5 * 2e9 * flops.gmacs(abstract_model(name, image_size=size))
    assert case.measure(2) > 0


def test_the_report_shows_what_is_unknown():
    row = dict.fromkeys(benchmark_report.COLUMNS, 1) | {
        "dtype": "float32",
        "mode": "inference",
        "peak_memory_mb": None,
    }
    found = {"device": "cpu", "matmul_peak_gflops": None, "rows": [row]}
    table = benchmark_report.table(found)
    assert table.splitlines()[0] == "cpu, float32, inference"
    assert "| - |" in table.splitlines()[-1]


CHILD = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if "make" in request:
        known = request["make"]["model"].startswith("deit")
        print(json.dumps({"number": 0 if known else None, "compile_seconds": 0.5}), flush=True)
    elif "run" in request:
        print(json.dumps({"seconds": 0.25}), flush=True)
    else:
        print(json.dumps({"peak_memory_mb": None}), flush=True)
"""


@pytest.fixture
def fake_timm(monkeypatch):
    """A child that answers as timm's would, without PyTorch."""
    real = timm_models.subprocess.Popen
    monkeypatch.setattr(timm_models.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(
        timm_models.subprocess, "Popen", lambda _, **k: real([sys.executable, "-c", CHILD], **k)
    )


@pytest.mark.slow
def test_peers_are_rows_of_the_dense_model(fake_timm, capsys):
    benchmark.main([MODELS, *SMALL, "--batch_sizes=2", "--peers=timm", "--json"])
    rows = last_json(capsys.readouterr().out)["rows"]
    assert [row["framework"] for row in rows] == ["evovit_jax"] * 2 + list(timm_models.VARIANTS)
    assert [row["reduction"] for row in rows[2:]] == ["none", "none"]
    assert rows[2]["images_per_second"] == 8
    assert rows[2]["gmacs"] == rows[0]["gmacs"]
    assert rows[2]["peak_memory_mb"] is None


def test_a_model_that_timm_has_not_has_no_row(fake_timm):
    case = own_models.Case(
        {
            "model": "evo_x",
            "batch_size": 1,
            "mode": "inference",
            "dtype": "float32",
            "image_size": 32,
            "reduction": "evo",
        },
        lambda n: 1.0,
    )
    with timm_models.start() as peer:
        assert rows._peer_cases(peer, [case]) == []


def test_a_child_that_ends_is_an_error(fake_timm, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "CHILD", "")
    with timm_models.start() as peer, pytest.raises(UserError, match="ended without an answer"):
        peer.make(model="deit")
