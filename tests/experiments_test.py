"""The experiments: what needs a GPU in its smoke form, images that are made, tables of runs."""

import csv
import json
import os
import pathlib
import runpy
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_the_gpu_experiment_makes_its_tables_and_goes_on_where_it_was(tmp_path):
    def run():
        path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            [ROOT / "experiments" / "gpu.sh", tmp_path / "out"],
            env={**os.environ, "SMOKE": "1", "PATH": path, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

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


def test_a_pasted_object_is_in_its_box(tmp_path, monkeypatch):
    """White photographs on blurred black ones, and the other way round."""
    (tmp_path / "photos").mkdir()
    for i, shade in enumerate((0, 255)):
        Image.new("L", (60, 50), shade).save(tmp_path / "photos" / f"{i}.png")
    flags = [f"--data=folder:{tmp_path}/photos", f"--output={tmp_path}/pasted", "--parts=4"]
    monkeypatch.setattr(sys, "argv", ["pasted_objects.py", *flags])
    runpy.run_path(str(ROOT / "experiments" / "pasted_objects.py"), run_name="__main__")
    with (tmp_path / "pasted" / "boxes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for row in rows:
        pixels = np.asarray(Image.open(tmp_path / "pasted" / row["file"]))[..., 0]
        x0, y0, x1, y1 = (int(row[edge]) for edge in ("x0", "y0", "x1", "y1"))
        assert (x1 - x0, y1 - y0) == (56, 56)
        assert 16 <= min(x0, y0) <= max(x1, y1) <= 240
        inside = np.zeros(pixels.shape, bool)
        inside[y0:y1, x0:x1] = True
        assert len(np.unique(pixels[inside])) == len(np.unique(pixels[~inside])) == 1
        assert pixels[inside][0] != pixels[~inside][0]


def test_runs_become_rows_and_logs(tmp_path, monkeypatch, capsys):
    """Of a run of 30 steps, of which the first 10 have no rate."""
    output, logs = tmp_path / "out", tmp_path / "logs"
    (output / "evit_3").mkdir(parents=True)
    (output / "before_3").mkdir()
    (output / "evit_3.json").write_text("{}")
    (output / "unfinished_3").mkdir()
    config = {"batch_size": 64, "reduction": "evit", "total_epochs": 3, "model": {"name": "net"}}
    (output / "evit_3" / "config.json").write_text(json.dumps(config))
    records = [
        {"step": 10, "loss": 2.0, "gmacs": 0.8},
        {"step": 10, "val_top1": 50.0},
        {"step": 20, "loss": 1.5, "gmacs": 0.8, "images_per_second": 64.0},
        {"step": 30, "loss": 1.0, "gmacs": 0.8, "images_per_second": 32.0},
        {"step": 30, "val_top1": 81.25},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (output / "evit_3" / "metrics.jsonl").write_text(lines)
    table = "reduction,top1,top1_low,top1_high\nevit,70.0,65.0,75.0\n"
    (output / "before_3" / "compare.csv").write_text(table)

    def results(*flags):
        monkeypatch.setattr(sys, "argv", ["results.py", str(output), f"--logs={logs}", *flags])
        runpy.run_path(str(ROOT / "experiments" / "results.py"), run_name="__main__")

    results(f"--picture={tmp_path}/p.png")
    header, _, row = capsys.readouterr().out.splitlines()
    assert header == "| Name | Seed | Epochs | Time | GMACs | Before | Ours | Log |"
    log = "finetune_evit_3.jsonl"
    cells = f"| evit | 3 | 3 | 45 s | 0.8 | 70.0 (65.0 to 75.0) | 81.2 | [{log}](logs/{log}) |"
    assert row == cells
    about, *evaluations = map(json.loads, (logs / log).read_text().splitlines())
    assert about["training_seconds"] == 45.0
    assert evaluations == [records[1], records[4]]
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == (1320, 540)
    results(f"--picture={tmp_path}/empty.png", "--leave_out", "evit")
    assert (tmp_path / "empty.png").read_bytes() != (tmp_path / "p.png").read_bytes()


def test_what_compilers_say_is_kept_and_laid_out(tmp_path, monkeypatch, capsys):
    module = runpy.run_path(str(ROOT / "experiments" / "compilers.py"))
    network = {"target": "h100", "model": "m", "reduction": "evo", "batch_size": 64}
    sizes = {"dtype": "bfloat16", "estimated_ms": 1.5, "moved_mb": 40, "temporary_mb": 7}
    counts = {"kernels": 20, "fused_attention": 12, "without_estimate": {}, "parts_moved_mb": {}}
    counts["second_try"] = {}
    given_up = network | {"reduction": "tome", "error": "no tiles"}
    ran = []

    def run(command, **_):
        ran.append(command[command.index("-m") + 1 :])
        mode = next(flag for flag in command if flag.startswith("--mode=")).removeprefix("--mode=")
        row = network | sizes | counts | {"mode": mode}
        failed = [given_up | {"mode": mode}] if mode == "train" else []
        found = {"estimate_of": "compiler 1", "rows": [row], "failed": failed}
        said = f"a table\n{json.dumps(found)}\n"
        return subprocess.CompletedProcess(command, 1 if failed else 0, stdout=said)

    monkeypatch.setattr(subprocess, "run", run)
    flags = ["--target=h100", "--only=inference_methods,train_methods"]
    monkeypatch.setattr(sys, "argv", ["compilers.py", str(tmp_path), *flags])
    module["main"]()
    module["main"]()
    assert [command[0] for command in ran] == ["evovit_jax.benchmark"] * 2  # each once
    written = (tmp_path / "h100" / "tables.md").read_text()
    assert written.startswith("ESTIMATES (compiler 1), not measurements")
    assert "| m | evo | 20 | 12 | 40 | 7 | 1.5 | 20 | 12 | 40 | 7 | 1.5 |" in written
    assert "DOES NOT COMPILE for h100: m tome at 64: no tiles" in written
    assert capsys.readouterr().out.strip().endswith(written.strip())

    monkeypatch.setattr(subprocess, "run", lambda c, **_: subprocess.CompletedProcess(c, 1, "oops"))
    monkeypatch.setattr(sys, "argv", ["compilers.py", str(tmp_path / "other"), *flags])
    with pytest.raises(subprocess.CalledProcessError):
        module["main"]()
    assert not list((tmp_path / "other").rglob("*.json"))
