"""A comparison of reductions as CSV, as a Markdown table and as a plot.

Tested in tests/compare_test.py.
"""

import csv
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from evovit_jax import tables
from evovit_jax.benchmarking.comparison import Row
from evovit_jax.errors import printable
from evovit_jax.inference import output_folder

FRONT = "*"


def _shown(form: str, *keys: str) -> Callable[[Row], str]:
    """Some values of a row in a form; nothing where there are none."""

    def cell(row: Row) -> str:
        values = [row.get(key) for key in keys]
        return "" if None in values else form.format(*values)

    return cell


COLUMNS: dict[str, Callable[[Row], str]] = {
    "reduction": _shown("`{}`", "reduction"),
    "top-1 %": _shown("{:.1f}", "top1"),
    "95 %": _shown("{:.1f} to {:.1f}", "top1_low", "top1_high"),
    "top-5 %": _shown("{:.1f}", "top5"),
    "change": _shown("{:+.1f} ({:+.1f} to {:+.1f})", "change", "change_low", "change_high"),
    "agreement %": _shown("{:.1f}", "agreement"),
    "images/s": _shown("{:.1f}", "images_per_second"),
    "speed-up": _shown("{:.2f}", "speedup"),
    "spread": lambda row: f"{100 * row['spread']:.0f} %",
    "GMACs": _shown("{}", "gmacs"),
    "front": lambda row: FRONT if row.get("pareto") else "",
}


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown; columns that are empty in all of them are left out."""
    cells = {title: [cell(row) for row in rows] for title, cell in COLUMNS.items()}
    cells = {title: column for title, column in cells.items() if any(column)}
    rule = ["---"] + ["---:"] * (len(cells) - 1)
    return tables.markdown(cells, zip(*cells.values(), strict=True), rule)


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
    """Top-1 against images a second and against GMACs; a line for each method.

    Without labels it is the agreement with the dense network. Bars are the 95 % intervals, and a
    dashed line joins what is on the Pareto front.
    """
    from matplotlib.figure import Figure

    labelled = all(row["top1"] is not None for row in rows)
    gain, name = ("top1", "top-1, %") if labelled else ("agreement", "agreement, %")
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    methods = list(dict.fromkeys(row["reduction"].partition(",")[0] for row in rows))
    for number, method in enumerate(methods):
        own = [row for row in rows if row["reduction"].partition(",")[0] == method]
        style = {"color": f"C{number % 10}", "marker": "osD^vP*X"[number % 8], "label": method}
        for axis, quantity in zip(axes, ("images_per_second", "gmacs"), strict=True):
            line(axis, sorted(own, key=lambda row: row[quantity]), quantity, gain, style)
    front = sorted((row["gmacs"], row[gain]) for row in rows if row.get("pareto"))
    if front:
        axes[1].plot(
            *zip(*front, strict=True), color="black", ls="--", lw=1, zorder=0, label="Pareto front"
        )
    axes[0].set(xlabel="images a second", ylabel=name)
    axes[1].set(xlabel="GMACs an image")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.suptitle(printable(title), parse_math=False)  # a folder's name is no formula
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(path, dpi=120)


def line(axis: Any, rows: Sequence[Row], quantity: str, gain: str, style: dict[str, Any]) -> None:
    """One method's points, with a bar for each interval that there is."""
    bars = None
    if all(row.get(f"{gain}_low") is not None for row in rows):
        low = [max(0.0, row[gain] - row[f"{gain}_low"]) for row in rows]
        high = [max(0.0, row[f"{gain}_high"] - row[gain]) for row in rows]
        bars = [low, high]
    places, values = ([row[key] for row in rows] for key in (quantity, gain))
    values = [float("nan") if value is None else value for value in values]
    axis.errorbar(places, values, bars, elinewidth=0.6, capsize=2, **style)
