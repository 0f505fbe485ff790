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


COLUMNS: dict[str, Callable[[Row], str]] = {
    "reduction": tables.cell("`{}`", "reduction"),
    "top-1 %": tables.cell("{:.1f}", "top1"),
    "95 %": tables.cell("{:.1f} to {:.1f}", "top1_low", "top1_high"),
    "top-5 %": tables.cell("{:.1f}", "top5"),
    "change": tables.cell("{:+.1f} ({:+.1f} to {:+.1f})", "change", "change_low", "change_high"),
    "agreement %": tables.cell("{:.1f}", "agreement"),
    "images/s": tables.cell("{:.1f}", "images_per_second"),
    "speed-up": tables.cell("{:.2f}", "speedup"),
    "spread": lambda row: f"{100 * row['spread']:.0f} %",
    "GMACs": tables.cell("{}", "gmacs"),
    "front": lambda row: FRONT if row.get("pareto") else "",
}


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown; columns that are empty in all of them are left out."""
    cells = {title: [cell(row) for row in rows] for title, cell in COLUMNS.items()}
    cells = {title: column for title, column in cells.items() if any(column)}
    rule = ["---"] + ["---:"] * (len(cells) - 1)
    return tables.markdown(cells, zip(*cells.values(), strict=True), rule)


def write(rows: Sequence[Row], title: str, folder: pathlib.Path) -> None:
    """Writes compare.csv, compare.md and compare.png; of a study at_gmacs.png, too.

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
        if any(row.get("target_gmacs") for row in rows):
            plot_at_costs(rows, title, folder / "at_gmacs.png")


def plot(rows: Sequence[Row], title: str, path: pathlib.Path) -> None:
    """Top-1 against images a second and against GMACs; a line for each method.

    Without labels it is the agreement with the dense network. Bars are the 95 % intervals, and a
    dashed line joins what is on the Pareto front.
    """
    from matplotlib.figure import Figure

    gain, name = gain_of(rows)
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    methods = list(dict.fromkeys(row["reduction"].partition(",")[0] for row in rows))
    for number, method in enumerate(methods):
        own = [row for row in rows if row["reduction"].partition(",")[0] == method]
        style = method_style(number) | {"label": method}
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


def method_style(number: int) -> dict[str, str]:
    """Colour and marker of the method of that number, as Matplotlib takes them."""
    return {"color": f"C{number % 10}", "marker": "osD^vP*X"[number % 8]}


def plot_at_costs(rows: Sequence[Row], title: str, path: pathlib.Path) -> None:
    """A panel for each target: what the methods reach at that cost, the best at the top.

    Bars are the 95 % intervals, what is on the Pareto front is filled, and the dashed line is the
    network without reduction.
    """
    from matplotlib.figure import Figure

    gain, name = gain_of(rows)
    targets = sorted({row["target_gmacs"] for row in rows if row.get("target_gmacs")})
    at = [[row for row in rows if row["target_gmacs"] == target] for target in targets]
    figure = Figure((9 * len(at), 1.5 + 0.28 * max(map(len, at))), layout="constrained")
    axes = figure.subplots(1, len(at), squeeze=False)[0]
    for axis, target, own in zip(axes, targets, at, strict=True):
        own.sort(key=lambda row: row[gain])
        for place, row in enumerate(own):
            face = "C0" if row["pareto"] else "white"
            axis.errorbar(
                row[gain], place, xerr=bars([row], gain), fmt="o", c="C0", mfc=face, capsize=2
            )
        for row in rows:
            if row["reduction"] == "none":
                axis.axvline(row[gain], color="black", ls="--", lw=1)
        axis.set_yticks(range(len(own)), [f"{r['reduction']} ({r['gmacs']:.3f})" for r in own])
        axis.set(xlabel=f"{name} at {target:g} GMACs")
        axis.grid(alpha=0.3)
    figure.suptitle(printable(title), parse_math=False)
    figure.savefig(path, dpi=120)


def gain_of(rows: Sequence[Row]) -> tuple[str, str]:
    """The key of what is plotted against the cost, and its name: without labels the agreement."""
    if all(row["top1"] is not None for row in rows):
        return "top1", "top-1, %"
    return "agreement", "agreement, %"


def bars(rows: Sequence[Row], gain: str) -> list[list[float]] | None:
    """How far the intervals of rows reach to either side; None where there are none."""
    if any(row.get(f"{gain}_low") is None for row in rows):
        return None
    low = [max(0.0, row[gain] - row[f"{gain}_low"]) for row in rows]
    high = [max(0.0, row[f"{gain}_high"] - row[gain]) for row in rows]
    return [low, high]


def line(axis: Any, rows: Sequence[Row], quantity: str, gain: str, style: dict[str, Any]) -> None:
    """One method's points, with a bar for each interval that there is."""
    places, values = ([row[key] for row in rows] for key in (quantity, gain))
    values = [float("nan") if value is None else value for value in values]
    axis.errorbar(places, values, bars(rows, gain), elinewidth=0.6, capsize=2, **style)
