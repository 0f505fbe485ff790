"""The benchmark's results as a Markdown table and a plot."""

import collections
import pathlib
from typing import Any

from evovit_jax import tables
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


def table(report: dict[str, Any]) -> str:
    """The rows as a Markdown table, under a line on the device."""
    first = report["rows"][0]
    peak = report["matmul_peak_gflops"]
    known = "" if peak is None else f", matmul peak {peak:.0f} GFLOPS"
    rows = (["-" if row[key] is None else row[key] for key in COLUMNS] for row in report["rows"])
    title = f"{report['device']}, {first['dtype']}, {first['mode']}{known}"
    return f"{title}\n\n{tables.markdown(COLUMNS.values(), rows)}"


def write(report: dict[str, Any], markdown: str, folder: pathlib.Path) -> None:
    """`benchmark.json`, `benchmark.md` and, of models, `benchmark.png` in `folder`.

    Raises:
      UserError: the folder cannot be written.
    """
    with output_folder.refusing(folder):
        (folder / "benchmark.json").write_text(tables.json_line(report, 1) + "\n")
        (folder / "benchmark.md").write_text(markdown + "\n")
        if report["rows"] and "gmacs" in report["rows"][0]:
            plot(report, folder / "benchmark.png")


def plot(report: dict[str, Any], path: pathlib.Path) -> None:
    """Throughput against batch size, and speedup against the first model's GMACs over a row's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    series = collections.defaultdict(list)
    for row in report["rows"]:
        series[row["framework"], row["model"], row["reduction"]].append(row)
    for names, rows in series.items():
        label = " ".join(names).removesuffix(" none").removeprefix("evovit_jax ")
        rows = sorted(rows, key=lambda row: row["batch_size"])
        sizes = [row["batch_size"] for row in rows]
        left.plot(sizes, [row["images_per_second"] for row in rows], marker="o", label=label)
        first = report["rows"][0]["gmacs"]
        right.scatter(
            [first / row["gmacs"] for row in rows], [row["speedup"] for row in rows], label=label
        )
    left.set(xlabel="batch", ylabel="images/s", xscale="log", ylim=(0, None))
    left.legend(fontsize=7)
    right.axline((1, 1), slope=1, color="grey", linewidth=0.8)
    right.set(xlabel="GMACs of the first model over its own", ylabel="speedup, measured")
    figure.savefig(path, dpi=120)
