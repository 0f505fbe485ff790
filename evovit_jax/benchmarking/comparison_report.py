"""A comparison of reductions as CSV, as a Markdown table and as a plot.

Tested in tests/compare_test.py.
"""

import csv
import pathlib
from collections.abc import Sequence

from evovit_jax import tables
from evovit_jax.benchmarking.comparison import Row
from evovit_jax.errors import printable
from evovit_jax.inference import output_folder

COLUMNS = {
    "reduction": ("reduction", "`{}`"),
    "top1": ("top-1 %", "{:.1f}"),
    "top5": ("top-5 %", "{:.1f}"),
    "images_per_second": ("images/s", "{:.1f}"),
    "speedup": ("speed-up", "{:.2f}"),
    "spread": ("spread", "{:.0f} %"),
    "gmacs": ("GMACs", "{}"),
}


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    shown = [row | {"spread": 100 * row["spread"]} for row in rows]
    cells = [[form.format(row[key]) for key, (_, form) in COLUMNS.items()] for row in shown]
    rule = ["---"] + ["---:"] * (len(COLUMNS) - 1)
    return tables.markdown([title for title, _ in COLUMNS.values()], cells, rule)


def write(rows: Sequence[Row], title: str, folder: pathlib.Path) -> None:
    """Writes compare.csv, compare.md and compare.png.

    Raises:
      UserError: the folder cannot be written.
    """
    with output_folder.refusing(folder):
        with (folder / "compare.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        shown = tables.plain_text(printable(title))
        (folder / "compare.md").write_text(f"{shown}\n\n{table(rows)}\n", encoding="utf-8")
        plot(rows, title, folder / "compare.png")


def plot(rows: Sequence[Row], title: str, path: pathlib.Path) -> None:
    """Top-1 against images a second and against GMACs; a line for each method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    methods = list(dict.fromkeys(row["reduction"].partition(",")[0] for row in rows))
    for number, method in enumerate(methods):
        own = [row for row in rows if row["reduction"].partition(",")[0] == method]
        color, marker = f"C{number % 10}", "osD^vP*X"[number % 8]
        for axis, quantity in zip(axes, ("images_per_second", "gmacs"), strict=True):
            points = sorted((row[quantity], row["top1"]) for row in own)
            axis.plot(*zip(*points, strict=True), color=color, marker=marker, label=method)
    axes[0].set(xlabel="images a second", ylabel="top-1, %")
    axes[1].set(xlabel="GMACs an image")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.suptitle(printable(title), parse_math=False)  # a folder's name is no formula
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(path, dpi=120)
