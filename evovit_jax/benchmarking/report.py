"""The benchmark's results as a Markdown table and a plot."""

import collections
import json
import pathlib
from typing import Any

from evovit_jax.inference import output_folder

COLUMNS = {
    "framework": "framework",
    "model": "model",
    "reduction": "reduction",
    "batch_size": "batch",
    "images_per_second": "images/s",
    "latency_ms": "ms",
    "spread": "spread",
    "speedup": "speedup",
    "gmacs": "GMACs",
    "share_of_peak": "share of peak",
    "peak_memory_mb": "MB",
    "compile_seconds": "compile s",
}


def table(found: dict[str, Any]) -> str:
    """The rows as a Markdown table, under a line on the device."""
    first = found["rows"][0]
    peak = found["matmul_peak_gflops"]
    known = "" if peak is None else f", matmul peak {peak:.0f} GFLOPS"
    lines = [
        f"{found['device']}, {first['dtype']}, {first['mode']}{known}",
        "",
        "| " + " | ".join(COLUMNS.values()) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    for row in found["rows"]:
        cells = ("-" if row[key] is None else str(row[key]) for key in COLUMNS)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(found: dict[str, Any], markdown: str, folder: pathlib.Path) -> None:
    """`benchmark.json`, `benchmark.md` and, of models, `benchmark.png` in `folder`.

    Raises:
      UserError: the folder cannot be written.
    """
    with output_folder.refusing(folder):
        (folder / "benchmark.json").write_text(json.dumps(found, indent=1) + "\n")
        (folder / "benchmark.md").write_text(markdown + "\n")
        if found["rows"] and "gmacs" in found["rows"][0]:
            plot(found, folder / "benchmark.png")


def plot(found: dict[str, Any], path: pathlib.Path) -> None:
    """Throughput against batch size, and speedup against the first model's GMACs over a row's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    series = collections.defaultdict(list)
    for row in found["rows"]:
        series[row["framework"], row["model"], row["reduction"]].append(row)
    for names, rows in series.items():
        label = " ".join(names).removesuffix(" none").removeprefix("evovit_jax ")
        rows = sorted(rows, key=lambda row: row["batch_size"])
        sizes = [row["batch_size"] for row in rows]
        left.plot(sizes, [row["images_per_second"] for row in rows], marker="o", label=label)
        first = found["rows"][0]["gmacs"]
        right.scatter(
            [first / row["gmacs"] for row in rows], [row["speedup"] for row in rows], label=label
        )
    left.set(xlabel="batch", ylabel="images/s", xscale="log", ylim=(0, None))
    left.legend(fontsize=7)
    right.axline((1, 1), slope=1, color="grey", linewidth=0.8)
    right.set(xlabel="GMACs of the first model over its own", ylabel="speedup, measured")
    figure.savefig(path, dpi=120)
